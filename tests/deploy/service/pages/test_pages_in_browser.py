"""The pages in a real browser: what they show, that they follow along, and that only those who may act can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml
from chromium import Browser
from served import Site

from deploy.service.access import Role
from deploy.service.states import State
from pipeline.training.tracker import JsonLines
from workers.events import EventLog

pytestmark = [pytest.mark.browser, pytest.mark.slow]

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> {{ 7 * 7 }}"


def rows(browser: Browser) -> list[str]:
    found: list[str] = browser.run("[...document.querySelectorAll('#rows tr')].map(row => row.innerText)")
    return found


def test_the_list_follows_along_without_losing_the_focus(make_site: Callable[..., Site], browser: Browser) -> None:
    site = make_site()
    first = site.job("first", State.WAITING, HOSTILE)
    site.job("second", State.SUCCEEDED)
    browser.open(f"{site.url}/")
    browser.wait("document.querySelectorAll('#rows tr').length === 2")
    assert browser.run("document.getElementById('sign-in').hidden")
    assert HOSTILE in rows(browser)[1]
    assert browser.run("document.querySelectorAll('#content img, #content script').length") == 0

    browser.press("Tab", 9)
    assert browser.run("document.activeElement.className") == "skip"
    browser.run(f"document.querySelector('a[href=\"job?id={first.id}\"]').focus()")
    browser.run("window.row = document.activeElement.closest('tr')")
    site.move(first, State.RUNNING)
    site.job("third")
    browser.wait("window.row.innerText.includes('RUNNING')")
    browser.wait("document.querySelectorAll('#rows tr').length === 3")
    assert browser.run("document.activeElement.closest('tr') === window.row && window.row.isConnected")
    assert "1:0" in browser.run("window.row.lastElementChild.innerText")
    assert browser.run("document.getElementById('news').textContent") == f"{first.id} is now RUNNING"

    browser.run("document.getElementById('name').focus()")
    browser.type("ECO")
    browser.press("Enter", 13, "\r")
    browser.wait("document.querySelectorAll('#rows tr').length === 1")
    assert browser.run("location.search") == "?name=ECO"
    assert "1 job found" in browser.run("document.getElementById('count').textContent")
    browser.run("history.back()")
    browser.wait("document.querySelectorAll('#rows tr').length === 3")
    assert browser.run("document.getElementById('name').value") == ""
    assert browser.complaints == []


def test_the_list_is_paged(make_site: Callable[..., Site], browser: Browser) -> None:
    site = make_site()
    for number in range(53):
        site.job(f"job-{number}")
    browser.open(f"{site.url}/")
    assert browser.wait("document.getElementById('range').textContent") == "1 to 50 of 53"
    browser.run("document.getElementById('older').click()")
    browser.wait("document.getElementById('range').textContent === '51 to 53 of 53'")
    assert [line.split("-")[1] for line in rows(browser)] == ["2", "1", "0"]
    assert browser.run("document.getElementById('older').href") == ""
    assert browser.complaints == []


def test_a_job_is_followed_live_and_its_text_is_text(make_site: Callable[..., Site], browser: Browser) -> None:
    site = make_site()
    job = site.job("live", State.RUNNING)
    site.cluster.lines += [f"{HOSTILE}\n", "collect: 1.50M/3.00M tokens, 12k tokens/s, 2:05 left\n"]
    browser.open(f"{site.url}/")
    browser.wait("document.querySelector('#rows progress')?.value === 0.5")
    assert "50 %, 12k tokens/s, 2:05 left" in rows(browser)[0]
    browser.open(f"{site.url}/job?id={job.id}")
    browser.wait("document.querySelector('#tasks progress')?.value === 0.5")
    assert HOSTILE in browser.run("document.getElementById('log').textContent")
    assert browser.run("document.querySelectorAll('#content img, #content script').length") == 0
    assert "1.5M of 3M tokens, 12k tokens/s, 2:05 left" in browser.run("document.getElementById('tasks').innerText")
    site.cluster.lines.append('{"message": "collect: 2.25M/3.00M tokens, 12k tokens/s, 1:02 left"}\n')
    browser.wait("document.querySelector('#tasks progress').value === 0.75")
    site.cluster.lines.append(
        '{"name": "live", "status": "SUCCEEDED", "seconds": {"total": 61}, "collection": null, "jobs": {}, '
        '"dictionaries": {"d": {"fvu": 0.125, "l0": 32.0}}}\n'
    )
    site.cluster.is_over = True
    site.move(job, State.SUCCEEDED)
    browser.wait("document.getElementById('facts').innerText.includes('SUCCEEDED')")
    browser.wait("document.getElementById('log-state').textContent === 'complete'")
    assert browser.run("document.getElementById('figures').innerText").split() == [
        "Dictionary", "FVU", "L0", "Dead", "CE", "recovered", "d", "0.125", "32",
    ]  # fmt: skip
    browser.run("document.querySelector('details').open = true")
    spec = yaml.safe_load(browser.run("document.getElementById('spec').textContent"))
    assert spec == dict(site.service.jobs.get(job.id).spec)
    assert browser.complaints == []


def test_the_course_of_a_job_is_drawn(make_site: Callable[..., Site], browser: Browser) -> None:
    site = make_site()
    job = site.job("sae", State.RUNNING)
    output = f"{site.folder}/out/sae"
    events = EventLog(output, "events.jsonl", job="sae")
    for unit in range(3):
        seconds = {"read": 0.5, "forward": 2.0, "write": 1.0, "stall_read": 1.5, "stall_forward": 0.25, "total": 4.0}
        events.emit("unit.committed", store=f"{output}/{HOSTILE}", unit=unit, seconds=seconds)
    log = JsonLines(output, 0)
    for step in range(1, 101):
        figures = {"fvu": step**-0.5, "l0": 32.0, "dead_share": 0.0, "loss": 3.0}
        log.log(
            {"step": step, "tokens": 4096 * step, "tokens_per_s": 1e4, "stalled_s": 0.1, "dictionaries": {"d": figures}}
        )
    browser.open(f"{site.url}/job?id={job.id}")
    browser.wait("document.querySelectorAll('#curves polyline').length === 4")
    captions = "[...document.querySelectorAll('#curves figcaption')].map(each => each.textContent)"
    assert browser.run(captions) == ["FVU, logarithmic scale", "L0", "Share of dead latents", "Loss"]
    assert browser.run("document.querySelector('#curves svg').getAttribute('aria-label')") == (
        "FVU over steps; last: d 0.1"
    )
    heights = (
        "document.querySelector('#curves polyline').getAttribute('points').split(' ').map(each => +each.split(',')[1])"
    )
    found = browser.run(heights)
    assert (len(found), found) == (100, sorted(found))  # it falls, and SVG counts from the top
    stages = browser.run("document.getElementById('stages').innerText").split()[-15:]
    assert [stages[place : place + 5] for place in (0, 5, 10)] == [
        ["read", "1.5", "s", "4.5", "s"], ["forward", "6", "s", "0.75", "s"], ["write", "3", "s", "0", "s"],
    ]  # fmt: skip
    assert "the last 3 units" in browser.run("document.getElementById('stages').innerText")
    assert browser.run("document.querySelectorAll('#content img, #content script').length") == 0
    assert browser.complaints == []


def test_a_token_is_asked_for_kept_from_addresses_and_opens_what_its_role_may(
    make_site: Callable[..., Site], browser: Browser
) -> None:
    site = make_site(has_policy=True)
    viewer = site.service.tokens.create("eve", Role.VIEWER, "lab")
    submitter = site.service.tokens.create("sam", Role.SUBMITTER, "lab")
    job = site.job("sae", State.RUNNING)
    site.cluster.is_over = True
    browser.open(f"{site.url}/job?id={job.id}")
    browser.wait("!document.getElementById('sign-in').hidden")
    assert browser.run("document.getElementById('page').hidden")
    for secret, problem in (("hw_nonsense", "does not know this token"), (viewer, "")):
        browser.wait("document.activeElement.id === 'token'")
        browser.type(secret)
        browser.press("Enter", 13, "\r")
        browser.wait(f"document.getElementById('sign-in-problem').textContent.includes('{problem}')")
    browser.wait("document.getElementById('facts').innerText.includes('RUNNING')")
    assert browser.run("document.getElementById('who').textContent") == "eve, viewer of lab"
    assert browser.run("document.getElementById('stop').hidden && document.getElementById('retry').hidden")
    browser.wait("document.getElementById('log-state').textContent")
    assert any("/logs?follow=true" in address for address in browser.addresses)
    assert browser.run("document.cookie + JSON.stringify(localStorage)") == "{}"

    browser.run("document.getElementById('forget').click()")
    browser.wait("!document.getElementById('sign-in').hidden")
    assert browser.run("sessionStorage.length") == 0
    browser.wait("document.activeElement.id === 'token'")
    browser.type(submitter)
    browser.press("Enter", 13, "\r")
    browser.wait("document.getElementById('stop') && !document.getElementById('stop').hidden")
    browser.run("document.getElementById('stop').click()")
    browser.wait("document.getElementById('confirm').open && document.activeElement.id === 'confirm-no'")
    browser.press("Escape", 27)
    browser.wait("!document.getElementById('confirm').open")
    assert not site.service.jobs.get(job.id).progress.stop_asked
    browser.run("document.getElementById('stop').click(); document.getElementById('confirm-yes').click()")
    browser.wait("document.getElementById('facts').innerText.includes('stopping')")
    assert site.service.jobs.get(job.id).progress.stop_asked

    site.move(job, State.FAILED, HOSTILE)
    browser.wait("!document.getElementById('retry').hidden")
    assert browser.run("document.getElementById('message').textContent") == HOSTILE
    browser.run("document.getElementById('retry').click(); document.getElementById('confirm-yes').click()")
    # Submitting again is checked as any job is: this team may write there.
    browser.wait("document.getElementById('attempts')?.children.length === 2")
    assert browser.run("new URLSearchParams(location.search).get('id')") == f"{job.id[:-1]}1"
    site.service.tokens.revoke("sam")
    browser.wait("!document.getElementById('sign-in').hidden")
    assert "any more" in browser.run("document.getElementById('sign-in-problem').textContent")
    assert not any("hw_" in address for address in browser.addresses)
    # A refused token is an answer of 401, which browsers note; nothing else may be amiss.
    assert [each for each in browser.complaints if "401" not in each] == []
