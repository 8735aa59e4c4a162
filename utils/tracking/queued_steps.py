"""Stages as the steps of a pipeline that ClearML's agents take from a queue, each as soon as what it needs is there.

ClearML's own `PipelineController` runs it, so that its diagram stands among the plots of the controller's task. A step
is the task of a stage, as it would be cloned in the web UI.
"""
import contextlib
import io
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.errors import InputError
from utils.tracking.arguments import describe_arguments, get_module
from utils.tracking.clearml_patches import set_arguments
from utils.tracking.experiment import start
from utils.tracking.models import PROJECT, find_queues
from utils.tracking.server import ServerGone, call_server, has_server, prepare_clearml

REFERENCE = re.compile(r"\$\{(?P<key>[^.]+)\.models\.output\.-1\.id\}")
POLL = 2  # seconds between two looks at the steps


@dataclass(frozen=True)
class Step:
    """One stage to run; equal to another one that does the same.

    Attributes:
        key: short name, in the diagram
        name: of its task
        module: of the stage's command
        chosen: of its arguments by name; the others are as on this process's command line, or defaults. The id of a
            model that another step makes is that of `refer_to`
        after: keys of the other steps that must have ended before
        kind: of ClearML's types of tasks
    """

    key: str = field(compare=False)
    name: str
    module: str
    chosen: Mapping[str, Any]
    after: tuple[str, ...] = ()
    kind: str = "training"

    @property
    def parents(self) -> list[str]:
        referred = [match["key"] for value in self.references.values() for match in REFERENCE.finditer(value)]
        return [*dict.fromkeys([*referred, *self.after])]

    @property
    def references(self) -> dict[str, str]:
        """Those of the arguments that refer to models of other steps; of several ids, one after the other."""
        return {name: " ".join(map(str, value)) if isinstance(value, list | tuple) else value
                for name, value in self.chosen.items() if REFERENCE.search(str(value))}


def refer_to(key: str) -> str:
    """What stands for the id of the model that a step will have made, as ClearML's controller reads it. The key is
    without a dot."""
    return f"${{{key}.models.output.-1.id}}"


def check_queue(queue: str) -> None:
    """Raises an InputError without a server, or where it has no such queue."""
    if not has_server():
        raise InputError(f"--queue {queue}: needs a ClearML server (docs/clearml.md); without --queue all stages run "
                         "here")
    if queue not in (queues := find_queues()):
        raise InputError(f"--queue {queue}: the server has no such queue; it has: {', '.join(queues) or 'none'}. "
                         f"`clearml-agent daemon --queue {queue} --create-queue` makes it, and works on it")


def run_steps(name: str, steps: Sequence[Step], queue: str, tag: str) -> None:
    """Has agents run the steps, those that don't need each other side by side, and waits for them. Where it is
    interrupted, the steps that have begun or wait are stopped.

    Raises:
        InputError: a step failed; the others that don't need it have ended. Or the server is gone.
    """
    with start(name, {"queue": queue}, (tag,), kind="controller", module=get_module()):
        from clearml import PipelineController  # takes a while; its task is the one that is open
        own = prepare_clearml().Task.current_task()
        packages = (own.get_requirements().get("pip") or "").splitlines()  # waits until the code was looked at
        own.reload()
        pipeline = PipelineController(name=name, project=PROJECT, pool_frequency=POLL / 60, target_project=False)
        show = sys.stdout

        def tell(_: object, node: Any, __: object) -> None:
            print(f"{node.name}: {node.status}", file=show, flush=True)

        for step in steps:
            arguments = describe_arguments(step.module, step.chosen)
            ids = {f"{arguments[name].section}/{name}": value for name, value in step.references.items()}
            pipeline.add_step(step.key, parents=step.parents, execution_queue=queue, parameter_override=ids,
                              base_task_factory=lambda _, step=step: write_draft(step, own.data.script, packages, tag),
                              status_change_callback=tell)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # what the controller says is for its makers
                call_server(pipeline.start_locally, longest=math.inf)
        except ServerGone as error:
            raise InputError(f"ClearML: {error}; agents go on with what they have begun. When the server is there "
                             "again, the same command does what is missing") from None
        except (KeyboardInterrupt, SystemExit):
            if pipeline.is_running():
                pipeline.stop(mark_aborted=True)
            raise
        if problems := [f"{node.name} {node.status}" for node in pipeline.get_pipeline_dag().values()
                        if node.status != "completed"]:
            raise InputError(f"--queue {queue}: {', '.join(problems)}; the console of a failed task says why. Mend it, "
                             "then the same command does what is missing")


def write_draft(step: Step, script: Any, packages: Sequence[str], tag: str) -> Any:
    """A task of the stage that nobody has begun; of the code of `script`, as a task says it."""
    draft = prepare_clearml().Task.create(project_name=PROJECT, task_name=step.name, task_type=step.kind,
                                          module=step.module, packages=packages, detect_repository=False)
    draft.set_script(repository=script.repository, branch=script.branch, commit=script.version_num, diff=script.diff,
                     binary=script.binary)
    draft.set_tags([tag])
    set_arguments(draft, describe_arguments(step.module, step.chosen))
    return draft
