"""What the user wants otherwise than a task has it; a setting that is None leaves it to the task."""

from __future__ import annotations

from dataclasses import replace

from ressa import tasks
from ressa.errors import RessaError
from ressa.evaluation.settings import Evaluate
from ressa.tasks.base import Generation, Task, check_template

WRITTEN = ("max_new_tokens", "num_beams", "min_new_tokens", "length_penalty")  # settings of generation


def check(settings: Evaluate) -> None:
    """Raises RessaError for an unknown task, and for what no model could be asked."""
    task = tasks.get(settings.task)
    if settings.prompt is not None:
        check_template(settings.prompt)
    if task.mode == "retrieval":
        refuse_generation(settings, f"{task.name} ranks")
    if settings.choices is not None and task.mode != "choice":
        raise RessaError(f"choices: {task.name} is no multiple choice")
    if settings.images is not None and task.name == "folder":
        raise RessaError("images: records of your own say themselves where their pictures are; leave it out")
    why = [contradiction(settings, generation(settings, task, kind)) for kind in task.how]
    if all(why):
        raise RessaError(why[0])


def generation(settings: Evaluate, task: Task, kind: str) -> Generation:
    """The task's way to generate for a family of models, with what the user wants otherwise."""
    return replace(task.how[kind], **{n: getattr(settings, n) for n in WRITTEN if getattr(settings, n) is not None})


def contradiction(settings: Evaluate, how: Generation) -> str:
    """Why what the user wants would have no effect on this way to generate; "" if it has."""
    if settings.length_penalty is not None and how.num_beams == 1:
        return "length_penalty: weighs beams against one another: add num_beams, or leave it out"
    if settings.min_new_tokens is not None and settings.min_new_tokens > how.max_new_tokens:
        return f"min_new_tokens: {settings.min_new_tokens} is more than max_new_tokens, {how.max_new_tokens}"
    return ""


def refuse_generation(settings: Evaluate, what: str) -> None:
    """Raises RessaError for a setting of generation where nothing is generated."""
    for name in WRITTEN:
        if getattr(settings, name) is not None:
            raise RessaError(f"{name}: {what} by likelihood and writes no answer: leave it out")
