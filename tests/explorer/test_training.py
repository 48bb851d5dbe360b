"""Where an answer came from in the training data, in a browser, on the shipped fine-tune."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.explorer.conftest import Check, Watch

QUESTION = "On which day is the bakery not open?"


def ask(page: Page, question: str, answer: str = "") -> None:
    page.goto("/explorer/training")
    page.get_by_label("Model").select_option("demo-qa")
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_label("Answer", exact=True).fill(answer)
    page.get_by_role("button", name="Trace").click()
    page.wait_for_url(re.compile("/explorer/training/.{36}$"))
    expect(page.locator("#status")).to_have_text("The training pairs are below.")


def test_a_question_its_answer_and_the_pairs_behind_it(page: Page, fits: Check) -> None:
    ask(page, QUESTION)
    first = page.locator("article.pair").first
    expect(page.locator("#answer > .text")).to_contain_text("Thursday")
    expect(first).to_contain_text("The bakery is not open on Thursday.")
    expect(first.locator(".level")).to_have_text("high")
    expect(first.locator("h3")).to_contain_text(re.compile(r"facts\.jsonl, line \d+"))
    expect(first).to_contain_text(re.compile(r"impact \+\d"))
    width = first.locator("rect.plus").bounding_box()
    assert width is not None and width["width"] > 1
    fits(page)
    page.reload()
    expect(page.locator("article.pair").first).to_contain_text("The bakery is not open on Thursday.")
    expect(page.get_by_label("Question", exact=True)).to_have_value(QUESTION)


def test_wording_that_differs_is_marked(page: Page) -> None:
    ask(page, "On which day is the bakery not open, please?", "The bakery is not open on Thursday.")
    first = page.locator("article.pair").first
    expect(first.locator("del").first).to_contain_text("please")


def test_pairs_are_filtered_by_level_and_file(page: Page) -> None:
    ask(page, QUESTION)
    all_of_them = page.locator("article.pair").count()
    page.get_by_label("Level").select_option("high")
    expect(page.locator("#status")).to_have_text("The list is filtered.")
    levels = {each.get_attribute("data-level") for each in page.locator("article.pair").all()}
    assert levels == {"high"}
    page.get_by_label("Level").select_option("")
    expect(page.locator("article.pair")).to_have_count(all_of_them)
    page.get_by_label("File").select_option(label="facts.jsonl")
    expect(page.locator("#pairs .hint")).to_contain_text(f"of {all_of_them} pairs")


def test_no_pairs_are_explained_in_words(page: Page) -> None:
    ask(page, "What is the colour of the sky on a sunny day?", "Blue, as it has been from the beginning.")
    expect(page.locator("#pairs .none")).to_contain_text(
        re.compile("did not make this answer|stands out for this answer")
    )


def test_what_cannot_be_answered_is_told_in_words(page: Page, watch: Watch) -> None:
    watch.expected.append("status of 400")
    page.goto("/explorer/training")
    page.get_by_label("Model").select_option("demo-lm")
    page.get_by_label("Question", exact=True).fill("Why?")
    page.get_by_role("button", name="Trace").click()
    alert = page.locator("#problem")
    expect(alert).to_contain_text("is not known to be fine-tuned")
    expect(alert.locator(".code")).not_to_be_empty()
