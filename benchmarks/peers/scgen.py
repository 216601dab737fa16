"""scGen (Lotfollahi et al. 2019), as in pertpy's tutorial: predict the treated cells of a group from its control cells.

A variational autoencoder on log1p of counts per 10,000; the mean difference between treated and control cells in its
latent space, groups balanced, is added to the control cells of the group. Run it in the environment of `scgen.txt`.
"""

from __future__ import annotations

import time
from unittest.mock import patch

import numpy as np
import scvi
from _interface import parse, parser, read_log, split, write
from anndata import AnnData
from pertpy.tools import Scgen


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--epochs", type=int, default=100, help="at most; training stops early")
    command.add_argument("--patience", type=int, default=25, help="epochs without a better validation ELBO")
    command.add_argument("--batch-size", type=int, default=32)
    arguments = parse(command)
    scvi.settings.seed = arguments.seed

    train = read_log(arguments.train)
    held_out, control = split(train, arguments)
    Scgen.setup_anndata(train, batch_key=arguments.condition_key, labels_key=arguments.group_key)
    model = Scgen(train)
    start = time.perf_counter()
    model.train(
        max_epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        early_stopping=True,
        early_stopping_patience=arguments.patience,
        enable_progress_bar=False,
    )
    seconds = time.perf_counter() - start

    # pertpy balances the groups with generators that it seeds from the clock
    generator = np.random.default_rng(arguments.seed)
    with patch("numpy.random.default_rng", lambda *_: generator):
        predicted, _ = model.predict(
            ctrl_key=arguments.control, stim_key=arguments.treated, celltype_to_predict=arguments.held_out
        )
    obs = train.obs.loc[held_out & control, [name for name in train.obs if not name.startswith("_scvi")]]
    predicted = AnnData(predicted.X, obs=obs, var=train.var[[]])
    settings = {"epochs": len(model.history["elbo_validation"]), "batch_size": arguments.batch_size}
    write(arguments.out, predicted, seconds, ("pertpy", "scvi-tools", "jax", "anndata"), settings)


if __name__ == "__main__":
    main()
