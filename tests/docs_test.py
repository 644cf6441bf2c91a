import inspect
import pathlib
import re

import pytest

import tfvq.layers
import tfvq.models

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
MARKDOWN = [*ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md"), *(ROOT / "tfvq").rglob("*.md"), *PAGES]


def prose(path):
  """A page without its code, in which brackets are no links."""
  text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
  return re.sub(r"`[^`\n]*`", "", re.sub(r"^    .*", "", text, flags=re.MULTILINE))


def anchors(path):
  """Anchors of a page's headings, as GitHub and the site make them."""
  text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
  titles = [title.replace("`", "").lower() for title in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)]
  return {re.sub(r"[^\w -]", "", title).strip().replace(" ", "-") for title in titles}


def links(path):
  """Targets of a page's links and images that are not on the web."""
  targets = re.findall(r"\]\(([^)\s]+)\)", prose(path))
  return [target for target in targets if not re.match(r"https?:|mailto:", target)]


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
  for target in links(path):
    name, _, anchor = target.partition("#")
    file = (path.parent / name).resolve() if name else path
    assert file.is_file(), f"{path} links to {target}"
    assert not anchor or anchor in anchors(file), f"{path} links to {target}"


def test_pages_link_to_one_another():
  assert sum(len(links(path)) for path in PAGES) > 50  # or the pattern finds no links any more


def test_every_make_target_that_is_named_exists():
  makefile = (ROOT / "Makefile").read_text()
  pages = [*MARKDOWN, ROOT / ".ci" / "run", *(ROOT / ".github").rglob("*.yml")]
  named = {
    name for path in pages for name in re.findall(r"(?:`|^ *|run: )make ([a-z][\w-]*)", path.read_text(), re.MULTILINE)
  }
  named |= set(re.findall(r"target: ([\w-]+)", (ROOT / ".github" / "workflows" / "ci.yml").read_text()))
  assert {"demo", "speech", "test", "docs"} <= named
  for name in named:
    assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_every_page_is_in_the_navigation_once():
  navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
  listed = re.findall(r"[\w/-]+\.md", navigation)
  assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in PAGES)


def test_every_picture_and_sound_is_small_and_shown():
  shown = {(path.parent / target.partition("#")[0]).resolve() for path in MARKDOWN for target in links(path)}
  media = {path for path in DOCS.rglob("*") if path.is_file() and path.suffix != ".md"}
  assert media <= shown
  assert all(path.stat().st_size < 200_000 for path in media)


@pytest.mark.parametrize("path", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda path: path.stem)
def test_the_tutorials_python_runs(path, tmp_path, monkeypatch):
  blocks = re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
  assert blocks
  monkeypatch.chdir(tmp_path)
  names = {}
  for block in blocks:  # a page's blocks go on from one another
    exec(compile(block, str(path), "exec"), names)


@pytest.mark.parametrize("module", [tfvq.layers, tfvq.models], ids=lambda module: module.__name__)
def test_every_public_class_has_an_example(module):
  classes = [getattr(module, name) for name in module.__all__ if inspect.isclass(getattr(module, name))]
  # A base class is shown by the examples of its subclasses.
  concrete = [cls for cls in classes if not any(issubclass(other, cls) and other is not cls for other in classes)]
  assert len(concrete) > 10
  assert not [cls.__name__ for cls in concrete if ">>>" not in cls.__doc__]
