"""Packages of other people, installed by pip from a wheel made here."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path


def install(folder: Path, module: str, source: str, entry_points: str) -> Path:
    """Install a package of one module; return the directory to put on the path.

    Args:
        folder: where the wheel and the directory are made.
        module: name of the module and of the package.
        source: of the module.
        entry_points: text of entry_points.txt.
    """
    info = f"{module}-1.0.dist-info"
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entry_points,
    }
    wheel = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        record = [f"{info}/RECORD,,"]
        for name, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
            record.append(f"{name},sha256={digest.decode()},{len(text)}")
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "\n".join(record) + "\n")
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet"]
    subprocess.run([*pip, "--target", folder / "site", wheel], check=True)
    return folder / "site"
