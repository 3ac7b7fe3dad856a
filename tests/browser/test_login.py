"""Login: if accounts are set, all pages and endpoints require one."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser.fake_app import make_engine, serve
from tests.browser.page import ComparePage, until

pytestmark = pytest.mark.browser

LOGIN = ("ada", "correct horse")


@pytest.fixture(scope="module")
def url_with_login() -> Iterator[str]:
    with serve(lambda report: make_engine(), accounts=[LOGIN]) as address:
        yield address


def test_page_requires_login_and_works_after_it(driver: WebDriver, url_with_login: str) -> None:
    driver.get(url_with_login)
    fields = until(lambda: driver.find_elements(By.CSS_SELECTOR, "input"))
    assert not driver.find_elements(By.CSS_SELECTOR, "#run")
    for field, text in zip(fields, LOGIN, strict=False):
        field.send_keys(text)
    fields[1].send_keys(Keys.ENTER)
    page = ComparePage(driver, url_with_login)
    until(lambda: page.find("#run").is_displayed(), 60)
    until(lambda: page.find(".model.ready"), 60)
    until(lambda: "Logged in as ada" in page.text("#account"))
    page.intent("say hello")
    page.run()
    until(lambda: page.all(".card[data-state=done]"), 60)
    page.find("#account a").click()
    until(lambda: driver.find_elements(By.CSS_SELECTOR, "input[type=password]"), 60)


def test_endpoints_require_login(url_with_login: str) -> None:
    with httpx.Client(base_url=url_with_login) as client:
        response = client.post("gradio_api/call/compare", json={"data": ["say hello", ["zero-shot"]]})
        assert response.status_code == 401
        assert client.post("gradio_api/upload", files={"files": ("a.csv", b"a,b")}).status_code == 401
        wrong = client.post("login", data={"username": LOGIN[0], "password": "battery staple"})
        assert wrong.status_code == 400
