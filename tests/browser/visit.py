"""One visitor: what they do on the page, what they see there, and what the browser had to complain of."""

import base64
import contextlib
from urllib.parse import urlsplit

from playwright.sync_api import expect

from tests.stack import until

PATIENCE_SECONDS = 60
# Each step of `steady` takes 20 ms: long enough to be looked at.
LONG = 1000

expect.set_options(timeout=1000 * PATIENCE_SECONDS)


class Visit:
    """A tab of its own with a profile of its own."""

    def __init__(self, browser, url, faults=(), **options):
        self.url, self.faults = url, faults
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.context.set_default_timeout(1000 * PATIENCE_SECONDS)
        self.tab = self.context.new_page()
        self.complaints, self.requests = [], []
        self.tab.on("console", self._listen)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(url)

    def _listen(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def end(self):
        """Close the tab; fails when the browser complained or the page asked anything of another place."""
        self.context.close()
        complaints = [text for text in self.complaints if not any(fault in text for fault in self.faults)]
        assert not complaints, complaints
        assert not self.strangers(), self.strangers()

    def strangers(self):
        """What was asked of other origins. `data:` and `blob:` addresses ask nobody."""
        home = urlsplit(self.url).netloc
        places = (urlsplit(request) for request in self.requests)
        return [place.geturl() for place in places if place.scheme not in ("data", "blob") and place.netloc != home]

    # ---- what they see

    def see(self, selector):
        """The element, once it is to be seen."""
        element = self.tab.locator(selector)
        expect(element).to_be_visible()
        return element

    def see_stage(self, state):
        expect(self.tab.locator("#stage")).to_have_attribute("data-state", state)

    def see_news(self, text):
        """Hear it, if they use a screen reader."""
        expect(self.tab.locator("#news")).to_contain_text(text)

    def frames(self):
        return self.tab.locator(".frame")

    def picture(self):
        """The colour of the print at a place, as [red, green, blue]."""
        print_ = self.see("#print")
        until(lambda: print_.evaluate("img => img.complete && img.naturalWidth > 0"), PATIENCE_SECONDS, "a print")
        return print_

    def colour(self, x=0, y=0):
        """The colour of one pixel of the print."""
        return self.picture().evaluate(
            """(img, [x, y]) => {
                const canvas = document.createElement("canvas");
                [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
                const context = canvas.getContext("2d");
                context.drawImage(img, 0, 0);
                return [...context.getImageData(x, y, 1, 1).data].slice(0, 3);
            }""",
            [x, y],
        )

    def facts(self):
        words = self.tab.locator("#facts dt").all_text_contents()
        return dict(zip(words, self.tab.locator("#facts dd").all_text_contents(), strict=True))

    # ---- what they do

    def hand_in(self, prompt="a quiet sea", **settings):
        """Fill in the form and hand it in; the number on the ticket."""
        self.set(**settings)
        self.tab.locator("#prompt").fill(prompt)
        before = self.tab.locator("#ticket-number").text_content()
        self.tab.locator("#develop").click()
        expect(self.tab.locator("#ticket-number")).not_to_have_text(before)
        return self.tab.locator("#ticket-number").text_content()

    def set(self, **settings):
        """Set fields by their ids."""
        with self._settings_open():
            for name, value in settings.items():
                self.tab.locator(f"#{name}").fill(str(value))

    @contextlib.contextmanager
    def _settings_open(self):
        # The models come with the first answers.
        expect(self.tab.locator("#model")).not_to_have_value("")
        if not self.tab.locator("details[open]").count():
            self.tab.locator("summary").click()
        yield

    def drop(self, data, name="start.png", kind="image/png"):
        """Let a file fall onto the page."""
        expect(self.tab.locator("#model")).not_to_have_value("")
        transfer = self.tab.evaluate_handle(
            """([text, name, type]) => {
                const transfer = new DataTransfer();
                const bytes = Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0));
                transfer.items.add(new File([bytes], name, {type}));
                return transfer;
            }""",
            [base64.b64encode(data).decode(), name, kind],
        )
        for event in ("dragover", "drop"):
            self.tab.dispatch_event("body", event, {"dataTransfer": transfer})
