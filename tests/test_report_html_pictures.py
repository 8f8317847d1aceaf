"""Pictures on the page: scaled down, animated, and never too many."""

from PIL import Image, PngImagePlugin
from tiny_report import noise, write_run

from mmprune.run.report_html import write
from mmprune.run.report_html.pictures import MAX_WIDTH, embed, embed_all


def test_a_picture_is_scaled_down_and_described(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text('Description', 'dense above  pruned')
    image = Image.new('RGBA', (4000, 1000), (0, 0, 0, 0))
    image.save(tmp_path / 'a_frame.png', pnginfo=info)
    picture, size = embed(tmp_path / 'a_frame.png', 10**6)
    assert (picture.width, picture.height) == (MAX_WIDTH, MAX_WIDTH // 4)
    assert picture.alt == 'dense above pruned'
    assert picture.title == 'a frame'
    assert picture.src.startswith('data:image/jpeg;base64,')
    assert size < 50_000 and picture.still is None


def test_an_animation_is_made_to_fit_and_has_a_still(tmp_path):
    path = noise(tmp_path / 'a.gif', 900, 300, frames=4)
    whole, size = embed(path, 10**7)
    assert size > 500_000 and whole.width == 900
    small, size = embed(path, 300_000)
    assert small.width < 900
    assert len(small.src) < 4 / 3 * 300_000 + 100
    assert small.still.startswith('data:image/jpeg')


def test_pictures_beyond_the_budget_are_named(tmp_path):
    paths = [noise(tmp_path / f'{i}.png', 300, 300) for i in range(3)]
    (tmp_path / 'broken.png').write_text('none')
    found = dict(embed_all([tmp_path / 'broken.png', *paths], 150_000))
    kinds = [isinstance(picture, str) for picture in found.values()]
    assert kinds == [True, False, False, True]
    assert 'broken.png is left out' in found[tmp_path / 'broken.png']
    assert 'too big' in found[paths[2]]


def test_the_page_stays_below_ten_megabytes(tmp_path):
    folder = write_run(tmp_path / 'run')
    for i in range(5):
        noise(folder / f'{i}.png', 1800, 1200)
    text = write(folder).read_text()
    assert len(text) < 10_000_000
    assert 'is left out: the page would be too big' in text
