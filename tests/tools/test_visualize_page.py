"""The page of visualize.py in a real browser: clicks, keys, and its arithmetic."""

import numpy as np
import pytest
import torch

from mmlit.visualization.probe import probe
from mmlit_tools.visualize.page import choose_blocks, describe, write_page
from support.looking_helpers import (
    SCALE,
    open_browser,
    open_image,
    small_lit,
    write_noise,
)

CANVAS = 'return document.getElementById("picture").toDataURL()'
WEIGHTS = """
const [stage, block, head, row, column] = arguments;
const map = image.attention.find(one => one.stage === stage && one.block === block);
return [...attention(map, [head], {row, column})];
"""


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    path = write_noise(tmp_path_factory.mktemp('image') / 'a<b.png')
    image, lit = open_image(path), small_lit()
    # Block 1 of stage 2 looks 2 rows down and 3 columns to the left, in head 1.
    attn = lit.stages[2].blocks[1].attn
    with torch.no_grad():
        attn.qkv.weight.zero_()
        table = attn.position_bias.relative_position_bias_table.zero_()
        height, width = (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2
        table[1, height - 1 - 2, width - 1 + 3] = 20.0
    return path.stem, image, probe(lit, image.inputs)


@pytest.fixture(scope='module')
def browser(seen, tmp_path_factory):
    folder = tmp_path_factory.mktemp('page')
    page = folder / 'index.html'
    said = write_page(page, [describe(*seen, 8)], 'made <up>')
    assert 'index.html (0.' in said and 'Left out' not in said
    driver = open_browser(folder / 'profile')
    driver.get(page.as_uri())
    yield driver
    driver.quit()


def wait_for(driver, x, y):
    from selenium.webdriver.support.ui import WebDriverWait

    script = 'return document.getElementById("picture").dataset.drawn'
    WebDriverWait(driver, 60).until(lambda d: d.execute_script(script) == f'{x},{y}')
    status = driver.find_element('id', 'status').text
    assert f'x={x}, y={y}.' in status
    return driver.execute_script(CANVAS), status


def click(driver, x, y):
    """Clicks the middle of a pixel of the picture (100 x 60)."""
    from selenium.webdriver import ActionChains

    canvas = driver.find_element('id', 'picture')
    # Selenium counts from the middle of the element.
    right = round((x + 0.5 - 50) * canvas.size['width'] / 100)
    down = round((y + 0.5 - 30) * canvas.size['height'] / 60)
    chain = ActionChains(driver).move_to_element_with_offset(canvas, right, down)
    chain.click().perform()
    return wait_for(driver, x, y)


@pytest.mark.slow
def test_a_click_changes_the_picture(browser):
    from selenium.webdriver.common.keys import Keys

    start, status = wait_for(browser, 50, 30)
    assert 'Stage 2 (stride 16), block 0, mean of 2 heads' in status
    assert browser.find_element('id', 'about').text.startswith('Weights: made <up>.')
    one, status = click(browser, 20, 10)
    # In the input, pixel (20, 10) is at (41, 21).
    assert 'token row 1, column 2;' in status
    other, _ = click(browser, 77, 41)
    again, _ = click(browser, 20, 10)
    assert len({start, one, other}) == 3 and again == one
    # By keyboard: one token of 16 input pixels is 8 of the picture.
    browser.find_element('id', 'picture').send_keys(Keys.ARROW_RIGHT)
    right, status = wait_for(browser, 28, 10)
    assert right != one and 'token row 1, column 3;' in status
    browser.find_element('id', 'picture').send_keys(Keys.SHIFT + Keys.ARROW_UP)
    wait_for(browser, 28, 9)
    # Nothing was fetched, nothing went wrong.
    entries = 'return performance.getEntriesByType("resource").map(e => e.name)'
    fetched = browser.execute_script(entries)
    assert all(name.startswith('data:') for name in fetched)
    assert browser.get_log('browser') == []


@pytest.mark.slow
def test_the_brightest_place_is_where_attention_goes(browser):
    from selenium.webdriver.support.ui import Select

    for name, text in (('map', 'stage 2, block 1'), ('head', 'head 1')):
        Select(browser.find_element('id', name)).select_by_visible_text(text)
    boxes = browser.find_elements('css selector', '#layers input')
    for box in boxes:
        box.click()
    _, status = click(browser, 60, 20)  # token (2, 7): looks at (4, 4)
    assert 'head 1: token row 2, column 7; largest weight 100' in status
    redness = browser.execute_script(
        'const c = document.getElementById("picture");'
        'return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]'
    )
    # The canvas is 9.6 times the picture.
    red, green, _, _ = np.array(redness).reshape(576, 960, 4).transpose(2, 0, 1)
    rows, columns = np.nonzero(red - green > 60)
    # That token's square of 16 input pixels is 8 of the picture.
    edges = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
    np.testing.assert_allclose(np.array(edges) / 9.6, [32, 40, 32, 40], atol=0.15)
    assert len(rows) == pytest.approx((8 * 9.6) ** 2, rel=0.03)
    for box in boxes:
        box.click()


@pytest.mark.slow
def test_the_page_computes_what_the_network_does(browser, seen):
    result = seen[2]
    for attended in result.attentions:
        for query in ((0, 0), (2, 3)):
            exact = attended.weights([query])[:, 0].numpy()
            for head, expected in enumerate(exact):
                where = (attended.stage, attended.block, head, *query)
                found = browser.execute_script(WEIGHTS, *where)
                found = np.array(found).reshape(expected.shape)
                assert found.sum() == pytest.approx(1)
                np.testing.assert_allclose(found, expected, atol=0.04 * expected.max())
    script = 'return sampling(image.mergings[arguments[0]], {row: 1, column: 2})'
    for index, merging in enumerate(result.token_mergings):
        found = browser.execute_script(script, index)
        for kind, expected in (('to', merging.points()), ('from', merging.anchors())):
            places = [[point[kind]['x'], point[kind]['y']] for point in found]
            np.testing.assert_allclose(places, expected[1, 2] / SCALE, atol=0.02)
        lengths = [point['length'] for point in found]
        np.testing.assert_allclose(lengths, merging.displacements()[1, 2], atol=0.01)


def test_what_does_not_fit_is_left_out_and_said(seen, tmp_path):
    attended = seen[2].attentions  # Stage 2 has 8 x 14 tokens, stage 3 has 4 x 7.
    assert choose_blocks(attended, 0) == [False] * 3
    assert choose_blocks(attended, 1e9) == [True] * 3
    # The last blocks come first.
    assert 'Left out' not in write_page(tmp_path / 'a.html', [describe(*seen, 8)], '')
    size = (tmp_path / 'a.html').stat().st_size / 1e6
    said = write_page(tmp_path / 'b.html', [describe(*seen, size - 0.025)], '')
    assert 'a<b: Left out' in said and '(stage.block) 2.0:' in said
    page = (tmp_path / 'b.html').read_text('utf-8')
    assert '(stage.block) 2.0:' in page and 'a<b' not in page
