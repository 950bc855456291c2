"""From the name that a user gives a model to a folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from samebits.errors import ConfigError
from samebits.models.checkpoint import CONFIG_FILE

PACKAGE = Path(__file__).parent
BUNDLED = {"bundled": PACKAGE / "bundled" / "target", "bundled-draft": PACKAGE / "bundled" / "draft"}
SHAPES = PACKAGE / "shapes"
HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")


def shape_names() -> list[str]:
    """Names of the configs in the package, for `--load-format dummy`."""
    return sorted(path.parent.name for path in SHAPES.glob(f"*/{CONFIG_FILE}"))


def locate_model(model: str, load_format: str) -> Path:
    """The folder of `model`: `bundled` or `bundled-draft`, with dummy weights the name of a shape in the package,
    a folder, or a hub id (`organization/name`, with `@revision` if need be), which is downloaded.

    Raises `ConfigError` that says what to do when there is no such folder.
    """
    if model in BUNDLED:
        return BUNDLED[model]
    if load_format == "dummy" and model in shape_names():
        return SHAPES / model
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ConfigError(f"--model {model} is a file; name the folder that holds {CONFIG_FILE}")
    match = HUB_ID.fullmatch(model)
    if match is None:
        raise ConfigError(
            f"--model {model}: no such folder, and not a hub id (organization/name). In the package: "
            f"{', '.join(BUNDLED)}; with --load-format dummy also {', '.join(shape_names())}"
        )
    return _download(model, match["id"], match["revision"], load_format)


def _download(model: str, hub_id: str, revision: str | None, load_format: str) -> Path:
    """Fetch (or find in the hub's own cache) the files that Samebits reads."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"--model {model}: no such folder, and the download of a hub id needs huggingface-hub "
            "(pip install 'samebits[hub]'); or download the folder yourself and give its path"
        ) from error
    patterns = [pattern for pattern in HUB_FILES if load_format != "dummy" or pattern != "*.safetensors"]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"--model {model}: no such folder, and it cannot be downloaded from the hub ({reason}). Check the "
            "name and the network, or download the folder elsewhere and give its path"
        ) from error
