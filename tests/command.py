"""`shadow` commands for tests: a process that imports once and forks for each, and what came of a command."""

from __future__ import annotations

from dataclasses import dataclass

# Imports once and forks for every command: the imports take two seconds, a command on toy files a tenth of one.
ZYGOTE = """
import json, os, resource, signal, sys, traceback
import pyarrow.pandas_compat, shadow.architecture, shadow.cli, shadow.run, shadow.views.summary
shadow.architecture.name_rules()
stdout, sys.stdout = sys.stdout, open(os.devnull, "w")
shadow.cli.app(["explain", "rows"], standalone_mode=False)
sys.stdout = stdout
for line in sys.stdin:
    job = json.loads(line)
    pipes = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(job["seconds"])
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(pipes[0][1], 1)
        os.dup2(pipes[1][1], 2)
        if job["file_size"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"], job["file_size"]))
        sys.argv = ["shadow", *(os.fsdecode(bytes.fromhex(one)) for one in job["arguments"])]
        code = 0
        try:
            shadow.cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    texts = []
    for _, writer in pipes:
        os.close(writer)
    for reader, _ in pipes:  # before the child ends: it waits while 64 kB lie in a pipe
        with os.fdopen(reader, "rb") as file:
            texts.append(file.read().hex())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, *texts]), flush=True)
"""


@dataclass
class Run:
    code: int
    out: str
    err: str

    def assert_refused(self, code: int = 1) -> str:
        """An expected fault: the exit code, one `error:` line, at most one `hint:`, nothing else. Returns the error."""
        assert "Traceback" not in self.out + self.err, self.err[-400:]
        assert self.code == code, self.err
        lines = self.err.splitlines()
        assert [line.split(":")[0] for line in lines] in (["error"], ["error", "hint"]), self.err
        assert self.out == ""
        assert self.err.replace("\n", "").isprintable()
        return lines[0]

    def assert_done(self, code: int = 0) -> str:
        """A command that did its work. Returns what it printed, with the wrapped lines of tables as they are."""
        assert "Traceback" not in self.err, self.err[-400:]
        assert self.code == code, self.err
        assert self.out.replace("\n", "").isprintable()
        assert self.err.replace("\n", "").isprintable()
        return self.out
