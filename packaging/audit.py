"""Known vulnerabilities of the packages installed in a folder, by pip-audit (which has to be importable).

    python packaging/audit.py FOLDER

Exits with 0 if every package was looked up and none has a known vulnerability, with 1 if one has, and with 2 if the
service could not be asked, or did not know a package: pip-audit by itself calls that clean too.
"""

from __future__ import annotations

import json
import subprocess
import sys

CLEAN, VULNERABLE, UNKNOWN = 0, 1, 2
OURS = ("pyclattn",)  # need not be published yet


def verdict(report: dict) -> tuple[int, str]:
    """What pip-audit's report in JSON means, and a sentence that says so."""
    packages = [package for package in report["dependencies"] if package["name"] not in OURS]
    found = [
        f"{package['name']} {package['version']}: {', '.join(known['id'] for known in package['vulns'])}"
        for package in packages
        if package.get("vulns")
    ]
    skipped = [package for package in packages if "skip_reason" in package]
    n_audited = len(packages) - len(skipped)
    told = f"{n_audited} of {len(packages)} packages audited"
    if skipped:
        told += f"; could not be audited: {', '.join(package['name'] for package in skipped)}"
        told += f" (the first: {skipped[0]['skip_reason']})"
    if found:
        return VULNERABLE, f"known vulnerabilities: {'; '.join(found)}. {told}"
    if skipped or not packages:
        return UNKNOWN, f"not shown clean: {told}"
    return CLEAN, f"no known vulnerabilities: {told}"


def main(folder: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json", "--path", folder],
        capture_output=True, text=True,
    )  # fmt: skip
    try:
        code, told = verdict(json.loads(ran.stdout))
    except ValueError:
        code, told = UNKNOWN, f"not shown clean: pip-audit ended with {ran.returncode}: {ran.stderr.strip()[-500:]}"
    print(told)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
