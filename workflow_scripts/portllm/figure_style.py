"""What the figures share: colours, markers and lines that tell series apart, in grey too."""

from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas
from matplotlib.figure import Figure

# Equal scores give equal files.
matplotlib.rcParams["svg.hashsalt"] = "portllm"

Settings = dict[str, Any]


@dataclass(frozen=True)
class Drawing:
    """A figure, and the numbers that it shows."""

    figure: Figure
    numbers: pandas.DataFrame


# Okabe & Ito (2008): told apart by colour-blind readers; the hatches do so without colour.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")
# Half the width of a 95 % interval, in standard errors.
NORMAL_95 = 1.96
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
