"""The page at /: its files and headers, and what it does in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browsing
from fake_engine import write_checkpoint
from live_server import LiveServer, ending, free_port, launch, running, wait_for

from samebits.server.page_routes import CONTENT_SECURITY_POLICY, FOLDER, PAGE_PATHS

KEY = "sk-page"
QUESTION = "Tom has 3 boxes with 4 eggs each. He eats 2. How many are left?"
ECHO_TEMPLATE = "{{ '<|start|>' + messages[-1].content + '<|end|>' }}"


def echo_checkpoint(folder: Path, delay: float) -> Path:
    """A chat model that says what the last message says."""
    folder.mkdir()
    write_checkpoint(folder, parrot=True, delay=delay)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": ECHO_TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with running(echo_checkpoint(tmp_path_factory.mktemp("page") / "echo", 0.002), api_key=[KEY]) as live:
        yield live


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with running(echo_checkpoint(tmp_path_factory.mktemp("page") / "slow", 0.05)) as live:
        yield live


def test_every_file_is_served_with_a_strict_policy(server: LiveServer) -> None:
    assert {"/", "/page/main.js", "/page/style.css"} < PAGE_PATHS
    for path in PAGE_PATHS:
        response = server.get(path)
        assert response.status_code == 200, path
        assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
        again = server.get(path, headers={"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert server.post("/", {}).status_code == 405
    for outside in ("/page/", "/page/../app.py", "/page/%2e%2e/app.py", "/page/index.html", "/page/none.js"):
        assert server.get(outside).status_code == 404, outside


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    for file in FOLDER.iterdir():
        text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|//cdn|@import|url\(", text), file.name
        assert "innerHTML" not in text, file.name
        if file.name.endswith(".html"):
            assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=", text)


def test_the_page_needs_no_key_and_its_questions_do(locked: LiveServer) -> None:
    for path in PAGE_PATHS:
        assert locked.get(path).status_code == 200, path
    for path in ("/page/", "/page/none.js", "//", "/page", "/model_info", "/server_info"):
        assert locked.get(path).status_code == 401, path


def test_a_server_without_the_page(tmp_path: Path) -> None:
    with running(write_checkpoint(tmp_path), page=False, api_key=[KEY]) as live:
        assert live.get("/").status_code == 401
        assert live.get("/", headers={"x-api-key": KEY}).status_code == 404


def verdict(page: Any) -> str:
    """Run the last answer again under load; what the page says then."""
    page.locator(".again").last.click()
    finished = page.locator(".verdict.equal, .verdict.different").last
    finished.wait_for()
    return str(finished.inner_text())


def test_a_request_gives_the_same_bits_under_load(real: LiveServer) -> None:
    fields: dict[str, Any] = {"seed": "18446744073709551615", "max_tokens": 48, "temperature": 0.9}
    body = fields | {"messages": [{"role": "user", "content": QUESTION}]}
    expected = real.post("/v1/chat/completions", body).json()
    with browsing(real.url) as page:
        page.get_by_label("Seed").fill(fields["seed"])
        page.get_by_label("Longest answer").fill("48")
        page.get_by_label("Temperature").fill("0.9")
        page.get_by_role("button", name=QUESTION).click()
        page.locator(".again:not([hidden])").wait_for()
        assert page.locator(".text").text_content() == expected["choices"][0]["message"]["content"]
        assert page.locator(".token").count() == expected["usage"]["completion_tokens"]
        assert page.locator("#fingerprint").inner_text() == expected["system_fingerprint"]
        assert f"seed {fields['seed']}" in page.locator(".figures").inner_text()
        found = verdict(page)
        tokens = expected["usage"]["completion_tokens"]
        assert "Every bit came back the same" in found
        assert f"{tokens} token ids and {6 * tokens} float32 logprobs compared" in found
        assert "difference: 0 bits" in found
        assert int(re.search(r"beside (\d+) random samples", found)[1]) >= 24  # type: ignore[index]
        wait_for(lambda: real.engine()["running"] == 0)


def test_plain_torch_is_found_out(tmp_path: Path) -> None:
    port = free_port()
    arguments = ["-m", "samebits", "serve", "bundled", "--port", str(port), "--numerics", "torch"]
    with ending(launch([*arguments, "--kv-memory-mib", "64"], port, tmp_path)) as live:
        live.wait_until_ready(120)
        with browsing(live.url) as page:
            page.get_by_role("button", name="What does the module json do?").click()
            page.locator(".again:not([hidden])").wait_for()
            found = verdict(page)
    assert "The answers differ. First difference: " in found
    assert "difference: 0 bits" not in found


COMPARE = """async (changes) => {
    const { compare } = await import("/page/bits.js");
    const make = () => ({
        text: "ab", finish: "stop", fingerprint: "f",
        tokens: [1, 2].map((id) => ({ id, text: "x", logprob: -0.5, top: [{ text: "x", logprob: -0 }] })),
    });
    const [first, second] = [make(), make()];
    new Function("answer", changes)(second);
    return compare(first, second);
}"""


CHANGES: dict[str, str] = {
    "answer.tokens[1].id = 3": "token 1 is 2 alone and 3",
    "answer.tokens[1].logprob = -0.5000000596046448": "(0xbf000000) alone and -0.5000000596046448 (0xbf000001)",
    "answer.tokens[0].logprob = -0.50000000000000011": "logprob of token 0",
    "answer.tokens[0].top[0].logprob = 0": "alternatives of token 0",
    "answer.tokens[0].top[0].text = 'y'": "alternatives of token 0",
    "answer.tokens.pop()": "one answer has 2 tokens, the other 1",
    "answer.text = 'a'": "texts differ",
    "answer.finish = 'length'": "ended by",
    "answer.fingerprint = 'g'": "fingerprints differ",
}


def test_the_comparison_sees_every_difference(server: LiveServer) -> None:
    # Without the policy, which would not let a test make functions of texts.
    with browsing(server.url, bypass_csp=True) as page:
        assert page.evaluate(COMPARE, "") == {"tokens": 2, "logprobs": 4, "difference": None}
        for change, said in CHANGES.items():
            assert said in page.evaluate(COMPARE, change)["difference"], change


def test_a_key_is_asked_for(locked: LiveServer) -> None:
    with browsing(locked.url) as page:
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Key").fill("wrong")
        dialog.get_by_role("button").click()
        page.get_by_text("did not take that key").wait_for()
        page.keyboard.press("Escape")
        assert dialog.is_visible()
        dialog.get_by_label("Key").fill(KEY)
        page.keyboard.press("Enter")
        dialog.wait_for(state="hidden")
        page.get_by_label("Message", exact=True).fill("with a key")
        page.keyboard.press("Enter")
        page.locator(".again:not([hidden])").wait_for()
        assert page.locator(".text").text_content() == "with a key"
        page.reload()
        page.get_by_text("fake-fingerprint").wait_for()
        assert dialog.is_hidden()


def test_what_a_model_says_is_never_markup(slow: LiveServer) -> None:
    evil = "<img src=x onerror=alert(1)><b>&amp;"
    with browsing(slow.url) as page:
        page.get_by_label("Message", exact=True).fill(evil)
        page.keyboard.press("Enter")
        page.locator(".again:not([hidden])").wait_for()
        assert page.locator(".text").text_content() == evil
        assert page.locator(".bubble").text_content() == evil
        assert page.locator("#messages img, #messages b").count() == 0


def test_by_keyboard_alone(slow: LiveServer) -> None:
    """Send, walk along the tokens, stop an answer, and begin anew."""
    with browsing(slow.url) as page:
        page.keyboard.type("one two")
        page.keyboard.press("Enter")
        page.locator(".again:not([hidden])").wait_for()
        page.locator(".token").first.focus()
        for press, token in (("ArrowRight", 1), ("End", -1), ("Home", 0)):
            page.keyboard.press(press)
            label = page.locator(".token").nth(token).get_attribute("aria-label")
            assert page.evaluate("document.activeElement.getAttribute('aria-label')") == label
            assert "float32" in page.locator("#inspector").inner_text()
        assert page.locator(".token[tabindex='0']").count() == 1
        page.keyboard.press("Escape")
        assert page.locator("#inspector").is_hidden()
        page.get_by_label("Message", exact=True).focus()
        page.keyboard.type("a long text " * 40)
        page.keyboard.press("Enter")
        page.locator(".answer >> nth=1 >> .token >> nth=2").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("alert").get_by_text("stopped").wait_for()
        wait_for(lambda: slow.engine()["running"] == 0)
        page.get_by_role("button", name="New chat").press("Enter")
        assert page.locator("#messages li").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read(server: LiveServer, scheme: str) -> None:
    with browsing(server.url, color_scheme=scheme) as page:
        assert contrast(page, "body", "#welcome h2") > 12
        assert contrast(page, "aside", ".field label") > 4.5
        other = "dark" if scheme == "light" else "light"
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        while page.locator("#theme").inner_text() != f"Theme: {other}":
            page.locator("#theme").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
        page.reload()
        assert page.locator("#theme").inner_text() == f"Theme: {other}"


def contrast(page: Any, ground: str, text: str) -> float:
    """WCAG's contrast ratio of the text's colour on the ground's."""

    def luminance(selector: str, name: str) -> float:
        style = page.evaluate(f"getComputedStyle(document.querySelector({selector!r})).{name}")
        channels = [int(channel) / 255 for channel in re.findall(r"\d+", style)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(ground, "backgroundColor"), luminance(text, "color")])
    return (high + 0.05) / (low + 0.05)
