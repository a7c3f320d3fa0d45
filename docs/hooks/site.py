"""What the site needs beyond mkdocs: notebooks as pages, the benchmark's plots, and MathML.

Equations are turned into MathML when the site is built, which browsers render by themselves: no
script, no font and no network.
"""

import base64
import html
import json
import re
from pathlib import Path

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages that the menu does not list, before the notebooks."""
    listed = {page for entry in config.nav for page in entry.values() if isinstance(page, str)}
    pages = sorted(p.name for p in Path(config.docs_dir).glob("*.md") if p.name not in listed)
    at = next(i for i, entry in enumerate(config.nav) if "Notebooks" in entry)
    config.nav[at:at] = [{"More": pages}] if pages else []
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the notebooks as Markdown pages with their pictures, and the benchmark's plots."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page, pictures = as_markdown(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for path in sorted((ROOT / "bench" / "results").glob("*.png")):
        files.append(File.generated(config, f"bench/{path.name}", abs_src_path=str(path)))
    return files


def on_page_content(content: str, **_: object) -> str:
    """Equations as MathML."""
    content = _INLINE.sub(lambda m: mathml(m[1], "inline"), content)
    return _DISPLAY.sub(lambda m: mathml(m[1], "block"), content)


def mathml(tex: str, display: str) -> str:
    """An equation in TeX, which the page has escaped, as MathML."""
    return latex2mathml.converter.convert(html.unescape(tex).strip(), display=display)


def as_markdown(path: Path) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as Markdown, and its pictures by file name."""
    parts, pictures = [], {}
    for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for j, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{i}-{j}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![]({name})")
            else:
                text = "".join(output.get("text") or data.get("text/plain", []))
                parts.append(f'<pre class="output">{html.escape(text.rstrip())}</pre>')
    where = f"https://github.com/jaxqr/jaxqr/blob/main/notebooks/{path.name}"
    parts.insert(1, f"[The notebook itself]({where})")
    return "\n\n".join(parts) + "\n", pictures
