"""The hooks of one layer, which are put on before a record that samples it and taken off behind it."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.hooks import RemovableHandle

from gradwatch.capture.hooks import Hook

NUMBER = -1
"""Of every hook among those of its module. A compiler compares their numbers before it uses a graph for another module of a class,
and torch gives each hook of a process one of its own."""


class Attached:
    """The hooks of one layer, which come and go.

    To register a hook makes a handle, which costs more than all that a step without hooks takes. So it is registered once, and
    then put back where it was registered.

    Args:
        what: What they were made for.
    """

    __slots__ = ("_handles", "_places", "what")

    def __init__(self, what: tuple[object, ...]) -> None:
        self.what = what
        self._places: list[tuple[Hook, Callable[..., RemovableHandle], dict[str, bool]]] = []
        self._handles: list[RemovableHandle] = []

    def add(self, hook: Hook, register: Callable[..., RemovableHandle], **settings: bool) -> None:
        """Takes a hook, and the method of the module that attaches it."""
        self._places.append((hook, register, settings))

    def attach(self) -> None:
        """Attaches them, which are not attached."""
        if not self._handles:
            self._handles = [_renumbered(register(hook, **settings)) for hook, register, settings in self._places]
            return
        for index, (hook, register, settings) in enumerate(self._places):
            handle = self._handles[index]
            hooks = handle.hooks_dict_ref()
            if hooks is None:  # the module has got other dictionaries
                self._handles[index] = _renumbered(register(hook, **settings))
                continue
            hooks[handle.id] = hook
            wants_keywords = handle.extra_dict_ref[0]() if settings else None
            if wants_keywords is not None:
                wants_keywords[handle.id] = True

    def detach(self) -> None:
        """Takes them off."""
        for handle in self._handles:
            handle.remove()

    @property
    def last(self) -> bool:
        """Whether the last of them, which are attached, is the last one that is called after the module."""
        hooks = self._handles[-1].hooks_dict_ref()
        return not hooks or next(reversed(hooks)) == self._handles[-1].id


def _renumbered(handle: RemovableHandle) -> RemovableHandle:
    for reference in (handle.hooks_dict_ref, *handle.extra_dict_ref):
        hooks = reference()
        if hooks is not None and handle.id in hooks:
            hooks[NUMBER] = hooks.pop(handle.id)
    handle.id = NUMBER
    return handle
