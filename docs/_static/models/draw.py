"""Draw the models: ``python docs/_static/models/draw.py`` writes an SVG of each beside this file.

All pictures speak one language. Data are on the left, noise on the right. Blue arrows are the way of a cell in
training, orange ones that of a sample; networks are white boxes, labels and conditions yellow chips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.path import Path as Line

from sclatent.datasets import mitocheck

WIDTH, HEIGHT = 720, 360  # points
TOP, MIDDLE, BOTTOM = 256, 166, 76  # where the rows are: training, networks, sampling
TILE = 52  # side of an image, height of tokens
PAPER, INK, FAINT, LINE = "#fbfaf7", "#2b333b", "#5f6a74", "#b9c0c6"
TRAIN, SAMPLE, CHIP = "#2f6db3", "#cf5f24", "#f6d87c"
TOKENS = LinearSegmentedColormap.from_list("tokens", ["#1f5f8b", "#8fbcd4", "#f6f4ee", "#eeb47f", "#b9501f"])
HEAD = {"arrowstyle": "-|>,head_length=0.42,head_width=0.2", "mutation_scale": 12, "lw": 1.5}

mpl.rcParams |= {
    "svg.hashsalt": "sclatent",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "stix",
    "image.composite_image": False,
}


class Picture:
    """A sheet of paper and what may stand on it."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        self.ax: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        self.ax.axis("off")
        self.rounded(1, 1, WIDTH - 2, HEIGHT - 2, face=PAPER, edge="#e4e1d8", radius=9)
        for x, color, text in ((WIDTH - 206, TRAIN, "training"), (WIDTH - 104, SAMPLE, "sampling")):
            ends = [(x, 15), (x + 24, 15)]
            self.route(ends if color == TRAIN else ends[::-1], color)
            self.text(x + 30, 15, text, color, ha="left")

    def save(self, path: Path) -> None:
        """Write the picture, the same bytes every time."""
        self.figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})

    # ---- words, boxes and arrows

    def text(self, x: float, y: float, text: str, color: str = INK, size: float = 10.5, **kwargs: object) -> None:
        """Write something, centred by default."""
        kwargs = {"ha": "center", "va": "center", "linespacing": 1.3} | kwargs
        self.ax.text(x, y, text, color=color, fontsize=size, zorder=5, **kwargs)

    def rounded(
        self, x: float, y: float, w: float, h: float, face: str = "white", edge: str = INK, radius: float = 6,
        line: float = 1.1, zorder: float = 1,
    ) -> None:  # fmt: skip
        """Draw a box with round corners, from its lower left corner."""
        style = f"round,pad=0,rounding_size={radius}"
        self.ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc=face, ec=edge, lw=line, zorder=zorder))

    def network(self, x: float, y: float, w: float, name: str, does: str) -> None:
        """Draw a network around a point, with its name and what it gives."""
        self.rounded(x - w / 2, y - 23, w, 46, zorder=2)
        self.text(x, y + 9, name, size=11.5, weight="bold")
        self.text(x, y - 10, does, FAINT, size=11.5)

    def coder(self, x: float, y: float, name: str, *, learned: bool = True) -> None:
        """Draw one half of an autoencoder: wide at the data, narrow at the tokens. What is not learned is dashed."""
        corners = [(x - 29, y - 33), (x + 29, y - 19), (x + 29, y + 19), (x - 29, y + 33)]
        style = {"fc": "white", "ec": INK} if learned else {"fc": PAPER, "ec": FAINT, "ls": (0, (3, 2))}
        self.ax.add_patch(Polygon(corners, closed=True, lw=1.1, joinstyle="round", zorder=2, **style))
        self.text(x - 1, y, name, INK if learned else FAINT, weight="bold" if learned else "normal")

    def chip(self, x: float, y: float, w: float, text: str) -> None:
        """Draw a condition or a label."""
        self.rounded(x - w / 2, y - 9.5, w, 19, CHIP, "#c49a1f", radius=9.5, line=0.9, zorder=3)
        self.text(x, y - 0.5, text, size=10)

    def route(self, points: Sequence[tuple[float, float]], color: str, radius: float = 7) -> None:
        """Draw an arrow along points, with round corners."""
        line, codes = [points[0]], [Line.MOVETO]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            into, out = (np.subtract(corner, p) / np.linalg.norm(np.subtract(corner, p)) for p in (before, after))
            line += [tuple(corner - radius * into), corner, tuple(corner - radius * out)]
            codes += [Line.LINETO, Line.CURVE3, Line.CURVE3]
        path = Line([*line, points[-1]], [*codes, Line.LINETO])
        self.ax.add_patch(FancyArrowPatch(path=path, color=color, capstyle="butt", zorder=4, **HEAD))

    def chain(self, places: Sequence[tuple[float, float]], y: float, color: str) -> None:
        """Join things in a row, each given by its middle and its width."""
        for (x0, w0), (x1, w1) in pairwise(places):
            side = np.sign(x1 - x0)
            self.route([(x0 + side * (w0 / 2 + 4), y), (x1 - side * (w1 / 2 + 4), y)], color)

    def span(self, left: float, right: float, y: float, text: str, size: float = 10.5) -> None:
        """Draw a line between two places that says what lies between them."""
        self.ax.plot([left, right], [y, y], color=LINE, lw=1, zorder=1)
        for x in (left, right):
            self.ax.plot([x, x], [y - 3, y + 3], color=LINE, lw=1, zorder=1)
        self.text((left + right) / 2, y, text, FAINT, size, bbox={"fc": PAPER, "ec": "none", "pad": 4})

    # ---- cells

    def squares(self, x: float, y: float, w: float, values: np.ndarray, cmap: object, low: float, high: float) -> None:
        """Show a table of numbers as coloured squares, as high as a tile, around a point."""
        box = (x - w / 2, x + w / 2, y - TILE / 2, y + TILE / 2)
        fine = np.kron(values, np.ones((6, 6)))  # viewers smooth what they enlarge
        self.ax.imshow(fine, cmap=cmap, vmin=low, vmax=high, extent=box, interpolation="none", aspect="auto", zorder=2)
        self.rounded(box[0], box[2], w, TILE, "none", LINE, radius=0.4, line=0.6, zorder=3)

    def image(self, x: float, y: float, values: np.ndarray) -> None:
        """Show an image (height, width)."""
        self.squares(x, y, TILE, values, "gray", -0.9, 3.4)

    def tokens(self, x: float, y: float, values: np.ndarray) -> None:
        """Show tokens (n_tokens, token_dim), each a column."""
        places = x + 5.3 * (np.arange(len(values)) - (len(values) - 1) / 2)
        for place, token in zip(places, values, strict=True):
            self.squares(place, y, 3.9, token[:, None], TOKENS, -2.4, 2.4)

    def counts(self, x: float, y: float, genes: dict[str, int | None]) -> None:
        """Show a cell as a list of genes and counts."""
        self.rounded(x - 46, y - 32, 92, 64, edge=LINE, radius=4, line=0.9, zorder=2)
        for i, (gene, count) in enumerate(genes.items()):
            row = y + 23.5 - 11.8 * i
            self.text(x - 41, row, gene, size=8.5, ha="left")
            if count is None:
                self.text(x - 8, row, "not measured", FAINT, size=7, ha="left", style="italic")
                continue
            end = x - 8 + 26 * np.log1p(count) / np.log1p(90)
            corners = [(x - 8, row - 2.8), (end, row - 2.8), (end, row + 2.8), (x - 8, row + 2.8)]
            self.ax.add_patch(Polygon(corners, closed=True, fc="#7a93a8", ec="none", zorder=3))
            self.text(end + 3, row, str(count), FAINT, size=8, ha="left")


def likely_tokens(seed: int, n_tokens: int = 8, token_dim: int = 16) -> np.ndarray:
    """Numbers that look like tokens: they have some structure, mean 0 and variance 1."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.linspace(0, rng.uniform(3, 7), token_dim) + rng.uniform(0, 6))
    values = np.outer(rng.normal(size=n_tokens), wave)
    values += 0.8 * np.outer(np.cos(np.linspace(0, 5, n_tokens) + rng.uniform(0, 6)), np.linspace(-1, 1, token_dim))
    return (values - values.mean()) / values.std()


def nuclei() -> list[np.ndarray]:
    """Two measured cells, each with two nuclei, (32, 32), standardised as the models do it."""
    images = mitocheck().obsm["image"].reshape(-1, 32, 32).astype(float)
    images = (images - images.mean()) / images.std()
    return [images[495], images[500]]


def straight(t: float) -> tuple[float, float]:
    """Shares of data and noise on straight paths."""
    return t, 1 - t


def circular(t: float) -> tuple[float, float]:
    """Shares of data and noise on paths of constant variance."""
    return np.sin(np.pi * t / 2), np.cos(np.pi * t / 2)


Show = Callable[[float, float, np.ndarray], None]
STRAIGHT = r"$x_t = t\,z + (1 - t)\,\varepsilon$"
CIRCULAR = r"$x_t = \sin\frac{\pi t}{2}\;%s + \cos\frac{\pi t}{2}\;\varepsilon$"


def diffuse(
    picture: Picture, show: Show, data: Sequence[np.ndarray], start: float, xs: Sequence[float], shares: Callable
) -> None:
    """Show data, noise, and two noisy cells between them, in training and in sampling; say where time runs."""
    for y, seed, z in zip((TOP, BOTTOM), (5, 6), data, strict=True):
        noise = np.random.default_rng(seed).normal(size=z.shape)
        show(start, y, z)
        for x, t in zip(xs, (0.72, 0.38, 0.0), strict=True):
            a, s = shares(t)
            show(x, y, a * z + s * noise)
    picture.text(xs[2], TOP + 37, r"noise $\varepsilon$", FAINT)


def time_runs(picture: Picture, left: float, right: float, formula: str) -> None:
    """Say where time runs from, and to."""
    picture.span(left, right, HEIGHT - 20, formula, 12.5)
    picture.text(left, HEIGHT - 33, "$t = 1$", FAINT)
    picture.text(right, HEIGHT - 33, "$t = 0$", FAINT)


def denoiser(picture: Picture, xs: Sequence[float], name: str, gives: str) -> float:
    """Draw the denoiser below what it learns from and above what it moves; return where it ends."""
    x, w = (xs[0] + xs[1]) / 2, max(xs[1] - xs[0] + 64, 160)
    picture.network(x, MIDDLE, w, name, gives)
    for at in xs[:2]:
        picture.route([(at, TOP - 30), (at, MIDDLE + 25)], TRAIN)
        picture.route([(at, MIDDLE - 25), (at, BOTTOM + 30)], SAMPLE)
    picture.text(x, MIDDLE + 43, "learns $v$", TRAIN, size=10)
    picture.text(x, MIDDLE - 43, "moves by $v$", SAMPLE, size=10)
    return x + w / 2


def classifier(picture: Picture, left: float, x: float, pushed: float, *, conditioned: bool) -> None:
    """Draw the classifier at x, beside a denoiser that ends at ``left``, and how it pushes a sample."""
    chip = (left + x - 44) / 2
    picture.network(x, MIDDLE, 88, "classifier", r"$p(y\,|\,x_t)$")
    picture.route([(left + 3, MIDDLE + 13), (x - 47, MIDDLE + 13)], INK)
    picture.text(chip, MIDDLE + 24, "activations", FAINT, size=10)
    picture.chip(chip, MIDDLE - 11, 72, "a few labels")
    picture.route([(chip + 39, MIDDLE - 11), (x - 47, MIDDLE - 11)], INK)
    if conditioned:
        picture.route([(chip - 39, MIDDLE - 11), (left + 3, MIDDLE - 11)], INK)
    y = MIDDLE - 43
    picture.route([(x, MIDDLE - 25), (x, y), (pushed + 6, y)], SAMPLE)
    text = r"pushes: $\nabla \ln p(y\,|\,x_t)$"
    picture.text((pushed + x) / 2, y, text, SAMPLE, size=10, bbox={"fc": PAPER, "ec": "none", "pad": 2})
    picture.route([(x + 46, MIDDLE), (x + 68, MIDDLE)], INK)
    picture.text(x + 56, MIDDLE + 13, "predict", FAINT, size=10, ha="left")


def scldm() -> Picture:
    """SCLDM: a cell is a set of genes and counts; conditions come in, and the library size."""
    picture = Picture()
    cell, coder, tokens, xs = 68, 174, 262, (370, 490, 612)
    cells = {"VIM": 86, "CLU": 17, "APOE": 4, "GFAP": 0, "CD74": None}, {
        "VIM": 51, "CLU": 24, "APOE": 9, "GFAP": 1, "CD74": 0,
    }  # fmt: skip
    places = [(cell, 92), (coder, 58), (tokens, 42), *((x, 42) for x in xs)]
    diffuse(picture, picture.tokens, [likely_tokens(2), likely_tokens(11)], tokens, xs, straight)
    time_runs(picture, tokens, xs[2], STRAIGHT)
    for y, color, name, genes in zip((TOP, BOTTOM), (TRAIN, SAMPLE), ("encoder", "decoder"), cells, strict=True):
        picture.counts(cell, y, genes)
        picture.coder(coder, y, name)
        picture.chain(places if y == TOP else places[::-1], y, color)
    picture.route([(tokens, TOP - 30), (tokens, MIDDLE), (coder, MIDDLE), (coder, BOTTOM + 29)], TRAIN)
    picture.text(cell + 8, MIDDLE, "the decoder has\nto explain all\nmolecules", TRAIN, size=10)
    right = denoiser(picture, xs, "Diffusion Transformer", "$v(x_t, t, c, s)$")
    for i, text in enumerate(("cell type", "treatment", "library size")):
        y = MIDDLE + 23 * (1 - i)
        picture.chip(658, y, 78, text)
        picture.route([(617, y), (right + 3, MIDDLE + 13 * (1 - i))], INK)
    picture.text(cell, TOP + 42, "a cell", FAINT)
    picture.text(coder, TOP + 51, "sees a part of\nthe molecules", FAINT, size=10)
    picture.text(tokens, TOP + 37, "8 tokens $z$", FAINT)
    picture.text(cell, BOTTOM - 43, "a new cell", FAINT)
    return picture


def daed() -> Picture:
    """DAED: a little noise in place of an encoder, one step in place of a decoder, a prior of its own."""
    picture = Picture()
    cell, coder, x1, xs = 64, 170, 274, (384, 494, 610)
    rng = np.random.default_rng(7)
    images = nuclei()
    noisy = [np.sqrt(0.9) * image + np.sqrt(0.1) * rng.normal(size=image.shape) for image in images]
    places = [(cell, TILE), (coder, 58), *((x, TILE) for x in (x1, *xs))]
    diffuse(picture, picture.image, noisy, x1, xs, circular)
    time_runs(picture, x1, xs[2], CIRCULAR % "x_1")
    for y, color, image in zip((TOP, BOTTOM), (TRAIN, SAMPLE), images, strict=True):
        picture.image(cell, y, image)
        picture.chain(places if y == TOP else places[::-1], y, color)
    picture.coder(coder, TOP, "a little\nnoise", learned=False)
    picture.coder(coder, BOTTOM, "U-Net\n" + r"$f_\varphi$")
    picture.route([(x1, TOP - 30), (x1, MIDDLE), (coder, MIDDLE), (coder, BOTTOM + 29)], TRAIN)
    picture.text(cell + 8, MIDDLE, "learns to take\nthe noise off\nin one step", TRAIN, size=10)
    right = denoiser(picture, xs, "U-Net: the prior", "$v(x_t, t, y)$")
    picture.chip(640, MIDDLE, 46, "label")
    picture.route([(614, MIDDLE), (right + 3, MIDDLE)], INK)
    picture.text(cell, TOP + 37, "$x_0$, an image", FAINT)
    picture.text(x1, TOP + 37, "$x_1$, nearly $x_0$", FAINT)
    picture.span(cell, x1, 33, "one step")
    picture.span(x1, xs[2], 33, "many steps")
    return picture


def joint_diffusion() -> Picture:
    """JointDiffusion: no autoencoder; one network generates and classifies."""
    picture = Picture()
    cell, xs = 72, (200, 326, 458)
    diffuse(picture, picture.image, nuclei(), cell, xs, circular)
    time_runs(picture, cell, xs[2], CIRCULAR % "z")
    places = [(x, TILE) for x in (cell, *xs)]
    picture.chain(places, TOP, TRAIN)
    picture.chain(places[::-1], BOTTOM, SAMPLE)
    right = denoiser(picture, xs, "U-Net", "$v(x_t, t)$")
    classifier(picture, right, 590, xs[1], conditioned=False)
    picture.text(cell, TOP + 37, "$z$, an image", FAINT)
    picture.text(cell, BOTTOM - 37, "a new image", FAINT)
    return picture


def joint_ldm() -> Picture:
    """JointLDM: the same on tokens, and the denoiser is conditioned on the label, too."""
    picture = Picture()
    cell, coder, tokens, xs = 50, 134, 214, (304, 398, 496)
    diffuse(picture, picture.tokens, [likely_tokens(2), likely_tokens(11)], tokens, xs, straight)
    time_runs(picture, tokens, xs[2], STRAIGHT)
    places = [(cell, TILE), (coder, 58), *((x, 42) for x in (tokens, *xs))]
    for y, color, name, image in zip((TOP, BOTTOM), (TRAIN, SAMPLE), ("encoder", "decoder"), nuclei(), strict=True):
        picture.image(cell, y, image)
        picture.coder(coder, y, name)
        picture.chain(places if y == TOP else places[::-1], y, color)
    picture.route([(tokens, TOP - 30), (tokens, MIDDLE), (coder, MIDDLE), (coder, BOTTOM + 29)], TRAIN)
    picture.text(cell + 8, MIDDLE, "first the\nautoencoder", TRAIN, size=10)
    right = denoiser(picture, xs, "Diffusion Transformer", "$v(x_t, t, y)$")
    classifier(picture, right, 598, xs[1], conditioned=True)
    picture.text(cell, TOP + 44, "an image, or\nits embedding", FAINT, size=10)
    picture.text(tokens, TOP + 37, "tokens $z$", FAINT)
    return picture


if __name__ == "__main__":
    for draw in (scldm, daed, joint_diffusion, joint_ldm):
        draw().save(Path(__file__).with_name(f"{draw.__name__}.svg"))
