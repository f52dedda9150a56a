"""One target under atheris, the coverage-guided fuzzer: libFuzzer's options, and the target's name first.

Memory is bounded for the whole process: a file that makes a reader allocate without measure ends it with a finding,
as does one that takes longer than libFuzzer's -timeout.
"""

import resource
import sys

import atheris

NAME, MEMORY = sys.argv[1], 8 * 2**30

# Only what reads the files is instrumented: coverage of torch or of the standard library would drown theirs.
with atheris.instrument_imports(
    include=["smartcs._reading", "smartcs.data.formats", "smartcs.model", "smartcs.report.run_data", "smartcs.training"]
    + ["json", "csv", "inputs", "target", "targets", "run_targets"],
    exclude=["smartcs.model.bert", "smartcs.model.mlm"],
):
    import targets

targets.torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def run(data: bytes) -> None:
    targets.TARGETS[NAME].check(data)


atheris.Setup([sys.argv[0], *sys.argv[2:]], run)
atheris.Fuzz()
