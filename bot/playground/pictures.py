"""The pictures of the documentation: what people and moderators do with the bot, done in a browser.

Owns who does what on which picture. Waits on each for what must be seen there, so that a picture of
something else is never saved.
"""

import asyncio
import io
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from bot.playground.page import Held, Page

MIA, MAX = "Mia (member) in #general", "Max (moderator) in #general"
MIA_ALONE = "Mia (member) in a direct message"
MAX_ELSEWHERE, MAX_IN_LOG = "Max (moderator) in #random", "Max (moderator) in #mod-log"
LEA = "Lea (moderator, in German) in #allgemein"

_LOOK_S = 2.0  # that the film stands still for, so that one can read

Scene = Callable[[Page], Awaitable[None]]


async def conversation(page: Page) -> None:
    """Two people ask in one channel, and have their answers with what can be done with them."""
    await page.sit(MAX_ELSEWHERE)
    await page.command("settings server", name="temperature", value="0")  # the same pictures each time
    await page.until_shown("temperature")
    await page.sit(MIA)
    await page.begin_picture()
    await page.send("@Llamacord Write hello world in Python.")
    await page.until_answered()
    await page.sit(MAX)
    await page.send("@Llamacord Give me three tips for learning Python.")
    await page.until_answered()


async def streaming(page: Page) -> None:
    """An answer is being written, and can be stopped."""
    await page.sit(MAX_ELSEWHERE)
    await page.command("settings set", name="max_new_tokens", value="3000")  # long enough on any machine
    await page.until_shown("3000")
    await page.begin_picture()
    await page.send("@Llamacord Tell me a long story about a lighthouse keeper.")
    await page.until_grown(400)
    await page.until_shown("Stop")


async def code(page: Page) -> None:
    """The story is stopped; somewhere else comes an answer with code."""
    await page.click("Stop")
    await page.until_answered()
    await page.until_shown("Continue")
    await page.sit(MAX)
    await page.begin_picture()
    await page.send("@Llamacord Write a short Python function that reverses a string, and explain it.")
    await page.until_answered()


async def ask(page: Page) -> None:
    """A question with `/ask` that everybody sees, and one that nobody else does."""
    await page.sit(MIA)
    await page.begin_picture()
    await page.command("ask", prompt="What is the sea? Answer in one sentence.")
    await page.until_answered()
    await page.command("ask", prompt="What is the moon? Answer in one sentence.", private="True")
    await page.until_answered_in_private()


async def hearing(page: Page) -> None:
    """A forwarded message and a Word document are read."""
    await page.sit(MIA_ALONE)
    await page.command("settings set", name="temperature", value="0")
    await page.until_shown("temperature")
    await page.begin_picture()
    await page.send_held(Held(forwarded="The picnic is on Saturday at ten, by the lake."))
    await page.until_answered()
    await page.send_held(Held("When does the cafe open?", file=("cafe.docx", _document())))
    await page.until_shown("cafe.docx")
    await page.until_answered()


def _document() -> bytes:
    """Return a Word document of one sentence."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "<p><t>The lake cafe opens at nine and closes at six.</t></p>")
    return file.getvalue()


async def settings(page: Page) -> None:
    """How answers are made here, and where each value comes from."""
    await page.sit(MAX)
    await page.command("settings set", name="max_new_tokens", value="400")
    await page.until_shown("400")
    await page.begin_picture()
    await page.command("settings show")
    await page.until_shown("max_history_tokens")


async def model(page: Page) -> None:
    """Which model answers."""
    await page.sit(MAX)
    await page.begin_picture()
    await page.command("model show")
    await page.until_shown("Available:")


async def system(page: Page) -> None:
    """The system prompt is written in a form."""
    await page.sit(MAX_ELSEWHERE)
    await page.begin_picture()
    await page.command("system edit")
    await page.write_in_form(1, "You are the keeper of a lighthouse. Answer in short sentences.")


async def system_preview(page: Page) -> None:
    """Before it is saved it is shown, with what it costs."""
    await page.submit_form()
    await page.until_shown("Not saved yet.")


async def system_saved(page: Page) -> None:
    """It is saved, and holds."""
    await page.click("Save")
    await page.until_shown("Saved the system prompt")
    await page.command("system show")
    await page.until_shown("set for this conversation")


async def history(page: Page) -> None:
    """What is remembered here."""
    await page.sit(MIA)
    await page.begin_picture()
    await page.command("history")
    await page.until_shown("What I remember here")


async def config(page: Page) -> None:
    """A server is set up in one panel."""
    await page.sit(MAX)
    await page.begin_picture()
    await page.command("config")
    await page.choose("Where the moderator log goes", "mod-log")
    await page.until_shown("mod-log")
    await page.click("Lists for questions")
    await page.write_in_form(1, "homework*")
    await page.submit_form()
    await page.until_shown("1 for questions")


async def config_more(page: Page) -> None:
    """The panel's second page: language, channels without a mention, system prompt, defaults."""
    await page.click("More …")
    await page.until_shown("Language: the one set on Discord")
    await page.choose("Language of this server", "English")
    await page.until_shown("Language: English")
    await page.click("Slow answers")
    await page.write_in_form(1, "60")
    await page.submit_form()
    await page.until_shown("after 60 s")


async def refusal(page: Page) -> None:
    """What the rules of the server do not allow gets a sentence."""
    await page.sit(MIA)
    await page.begin_picture()
    await page.send("@Llamacord Do my homework, please.")
    await page.until_shown("The rules of this server don't allow this text")


async def moderation(page: Page) -> None:
    """The moderators' log: settings, a refusal, a report, a reset with its Undo."""
    await page.sit(MIA)
    await page.click("Report")
    await page.until_shown("I've told the moderators.")
    await page.sit(MAX)
    await page.command("reset")
    await page.sit(MAX_IN_LOG)
    await page.begin_picture(with_all=True)
    await page.until_shown("reported an answer")
    await page.until_shown("made me forget")
    await page.until_shown("Undo")


async def language(page: Page) -> None:
    """On a German server buttons, notes and the answers to commands are German."""
    await page.sit(LEA)
    await page.command("settings server", name="temperature", value="0")
    await page.until_shown("temperature")
    await page.begin_picture()
    await page.send("@Llamacord Hallo! Wie geht es dir?")
    await page.until_answered(report="Melden")
    await page.command("settings set", name="temperature", value="7")
    await page.until_shown("temperature muss eine Zahl zwischen 0 und 2 sein.")
    await page.command("history")
    await page.until_shown("Woran ich mich hier erinnere")


async def talk(page: Page) -> None:
    """People talk to each other, and a question is about that."""
    await page.sit(MAX)
    await page.command("config")
    await page.choose_more(
        "Remove server invites from answers", "Tell the model what was said before a question"
    )
    await page.until_shown("Tell the model what was said before a question")
    await page.begin_picture()
    await page.send("We meet on Friday at ten, in the library.")
    await page.sit(MIA)
    await page.send("Good, I bring the books.")
    await page.sit(MAX)
    await page.send("@Llamacord When and where do we meet?")
    await page.until_answered()


async def catchup(page: Page) -> None:
    """What was said meanwhile, for one person alone."""
    await page.send("And I bring cake for all of us.")
    await page.sit(MIA)
    await page.begin_picture()
    await page.command("catchup")
    await page.until_shown("messages from", timeout_s=300.0)


async def question_thread(page: Page) -> None:
    """A question gets a thread of its own."""
    await page.sit(MAX_ELSEWHERE)
    await page.command("config")
    await page.click("More …")
    await page.choose_more("Where each question gets a thread", "random")
    await page.until_shown("Threads for questions in")
    await page.begin_picture()
    await page.send("@Llamacord How do I make **good tea**?")
    await page.until_shown("How do I make good tea? ·")


async def privacy(page: Page) -> None:
    """What is kept of people, and all of it as a file."""
    await page.sit(MIA)
    await page.begin_picture()
    await page.command("privacy")
    await page.until_shown("What you can do")
    await page.command("export-data")
    await page.until_shown("llamacord-data.json")


async def forget_me(page: Page) -> None:
    """All that is kept of somebody can be deleted."""
    await page.begin_picture()
    await page.command("forget-me")
    await page.until_shown("This can't be undone.")


async def forgotten(page: Page) -> None:
    """It is deleted, and a receipt says how much it was; then nothing more is to be kept."""
    await page.click("Delete it all")
    await page.until_shown("Done: deleted")
    await page.command("opt-out")
    await page.until_shown("From now on I won't answer you")
    await page.send("@Llamacord Do you know me?")
    await page.until_shown("You've opted out")


SCENES: dict[str, Scene] = {
    scene.__name__: scene
    for scene in (
        conversation,
        streaming,
        code,
        ask,
        hearing,
        settings,
        model,
        system,
        system_preview,
        system_saved,
        history,
        config,
        config_more,
        refusal,
        moderation,
        language,
        talk,
        catchup,
        question_thread,
        privacy,
        forget_me,
        forgotten,
    )
}
"""In the order in which they are played, for each begins where the one before ended."""


async def film(page: Page, file: Path) -> None:
    """A question is asked, answered while one looks on, and a second person joins in: all of it in motion."""
    await page.sit(MAX_ELSEWHERE)
    await page.command("settings server", name="temperature", value="0")  # the same film each time
    await page.until_shown("temperature")
    await page.sit(MIA)
    async with page.filming(file):
        await page.write_slowly("@Llamacord What is photosynthesis? Answer in two sentences.")
        await page.until_answered()
        await asyncio.sleep(_LOOK_S)
        await page.write_slowly("@Llamacord Give me three tips for learning Python.")
        await page.until_answered()
        await asyncio.sleep(_LOOK_S)
    await page.sit(MAX)
    await page.command("reset")


async def take_pictures(page: Page, folder: Path) -> None:
    """Play all scenes and save a picture of each; `folder` is made if need be."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    await film(page, folder / "llamacord.gif")
    for name, play in SCENES.items():
        await play(page)
        await page.picture(folder / f"{name}.png")
