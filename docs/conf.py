"""How the documentation is built: ``make docs``, offline and without a warning."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version as version_of
from pathlib import Path

# sphinx-autodoc-typehints calls what Sphinx 10 will not have any more
warnings.filterwarnings("ignore", message=".*set_application", category=DeprecationWarning)
warnings.filterwarnings("ignore", message=".*set_application", category=PendingDeprecationWarning)

sys.path.insert(0, str(Path(__file__).parent))  # of _tables

# Sphinx wants its sources in one folder. Links of notebooks lead from tutorials/ to docs/, here from docs/tutorials/
here = Path(__file__).parent
(here / "tutorials").mkdir(exist_ok=True)
for notebook in (here.parent / "tutorials").glob("*.ipynb"):
    text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
    copy = here / "tutorials" / notebook.name
    if not copy.exists() or copy.read_text(encoding="utf-8") != text:
        copy.write_text(text, encoding="utf-8")

project = "sclatent"
author = "the sclatent developers"
copyright = author
release = version = version_of("sclatent")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "_tables",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "**/__pycache__"]
templates_path = ["_templates"]

# notebooks are shown with the outputs that they are kept with; a test executes them
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # sphinx_autodoc_typehints writes them
napoleon_google_docstring = False
napoleon_use_rtype = False
typehints_defaults = "braces"
typehints_document_rtype_none = False
typehints_use_rtype = False  # the type of what is returned stands before its description
always_use_bars_union = True


def typehints_fixup_module_name(module: str) -> str:
    """Where a name is public: sclatent.nn, not sclatent.nn._sets."""
    return module.partition("._")[0] if module.startswith("sclatent.") else module


suppress_warnings = ["config.cache"]  # of this function, which is not pickled

html_theme = "sphinx_book_theme"
html_title = "sclatent"
html_static_path = ["_static"]
html_show_sphinx = False
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "use_download_button": True}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
