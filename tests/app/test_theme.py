import pytest

from app import theme


def luminance(color: str) -> float:
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("p", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("ink", ["text", "muted", "accent", "good", "warn", "bad"])
def test_writing_is_readable_on_every_surface(p, ink):
    for ground in (p.surface, p.page):
        assert contrast(getattr(p, ink), ground) >= 4.5
    assert contrast(p.on_accent, p.accent) >= 4.5


def test_the_page_is_given_every_color():
    for p in (theme.LIGHT, theme.DARK):
        assert all(f"--fw-{n}:" in theme.variables(p) for n in ("page", "text", "accent", "bad"))
        assert theme.palette(p.dark) is p
