"""Whether the texts of a figure can be read."""

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text


def shown_labels(axis: Axis) -> list[Text]:
    """Labels of the ticks that lie within an axis's view."""
    low, high = sorted(axis.get_view_interval())
    ticks = (tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)
    return [tick.label1 for tick in ticks if tick.label1.get_visible()]


def assert_labels_stand_apart(figure: Figure) -> None:
    """No two texts of a figure lie on each other, none on a line, and none is cut off."""
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
        assert inside, f"{text.get_text()} is cut off"
        for other, there in zip(texts[number + 1 :], boxes[number + 1 :], strict=True):
            assert not box.overlaps(there), f"{text.get_text()} lies on {other.get_text()}"


def assert_hides_what_is_behind(text: Text) -> None:
    """A line that passes a text ends before it: it stands on a ground of its own, above lines."""
    ground = text.get_bbox_patch()
    assert ground is not None
    assert ground.get_facecolor() == (1, 1, 1, 1)
    assert all(text.get_zorder() > line.get_zorder() for line in text.axes.lines)
