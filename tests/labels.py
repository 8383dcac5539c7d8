"""Check that the texts of a figure are readable."""

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text


def shown_labels(axis: Axis) -> list[Text]:
    """List the labels of the ticks in the visible range of an axis."""
    low, high = sorted(axis.get_view_interval())
    ticks = (tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)
    return [tick.label1 for tick in ticks if tick.label1.get_visible()]


def assert_labels_stand_apart(figure: Figure) -> None:
    """Check that texts do not overlap each other or lines, and lie inside the figure."""
    figure.draw_without_rendering()
    (legend,) = figure.legends
    texts = [legend.get_title(), *legend.get_texts()]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += [*shown_labels(axes.xaxis), *shown_labels(axes.yaxis)]
        for text in axes.texts:
            assert_hides_what_is_behind(text)
    texts = [text for text in texts if text.get_text()]
    boxes = [text.get_window_extent().shrunk(0.95, 0.95) for text in texts]
    assert len(boxes) > 8
    for number, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        inside = figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1)
        assert inside, f"{text.get_text()} is outside the figure"
        for other, other_box in zip(texts[number + 1 :], boxes[number + 1 :], strict=True):
            assert not box.overlaps(other_box), f"{text.get_text()} overlaps {other.get_text()}"


def assert_hides_what_is_behind(text: Text) -> None:
    """Check that a text has an opaque background above the lines of its axes."""
    background = text.get_bbox_patch()
    assert background is not None
    assert background.get_facecolor() == (1, 1, 1, 1)
    assert all(text.get_zorder() > line.get_zorder() for line in text.axes.lines)
