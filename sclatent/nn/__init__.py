"""Layers: attention between genes and tokens, embeddings of time and of conditions."""

from ._attention import AdaLNBlock, Block, SelfAttention
from ._conditions import CombinationTable, ConditionEmbedding
from ._context import NULL, Context, Values
from ._cross_attention import CrossAttentionPooling, CrossAttentionReadout
from ._dropout import Dropout
from ._set_attention import SetPooling, SetReadout
from ._sets import CellSets
from ._time import TimeEmbedding

__all__ = [
    "NULL",
    "AdaLNBlock",
    "Block",
    "CellSets",
    "CombinationTable",
    "ConditionEmbedding",
    "Context",
    "CrossAttentionPooling",
    "CrossAttentionReadout",
    "Dropout",
    "SelfAttention",
    "SetPooling",
    "SetReadout",
    "TimeEmbedding",
    "Values",
]
