"""How a generation comes up: its configuration, what it inherits, and the moment from which its workers accept.

Cold, from systemd's store, from a predecessor, or from a haproxy. All that can fail is here; nothing has changed for
anybody else until Born is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hitlessd.changes import Change, Changes
from hitlessd.config import load, parse
from hitlessd.dataclass import dataclass, field
from hitlessd.effective import effective, keep
from hitlessd.errors import ConfigError, HitlessdError, ListenerRefused, PeerError, SystemRefused
from hitlessd.events import Event
from hitlessd.handover.phases import Phases
from hitlessd.handover.successor import PredecessorLost, Successor, Summons
from hitlessd.log import Log
from hitlessd.loop import Loop
from hitlessd.main.equipment import Equipment, equip
from hitlessd.main.inheritance import Inheritance, connect, from_offer, from_store, summoned, take_foreign
from hitlessd.main.pidfile import Pidfile
from hitlessd.main.store import State, Store, Stored
from hitlessd.model import Config
from hitlessd.systemd import inherited_descriptors

__all__ = ["Birth", "Born", "Options", "failure"]

#: Seconds a killed predecessor's workers may take to let go of their listeners.
_LAST_GASP = 3.0
#: Seconds to wait for a predecessor before the configuration, which says how long, is read.
_FIRST_PATIENCE = 60.0
#: HAProxy answers from a thread that is never busy; a longer silence means that nobody is there.
_FOREIGN_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. `finish` and `terminate` are the pids of -sf and -st."""

    files: tuple[str, ...]
    pidfile: str = ""
    predecessor: str = ""
    finish: tuple[int, ...] = ()
    terminate: tuple[int, ...] = ()


@dataclass(slots=True)
class Born:
    """A generation whose workers accept. `config` is what the files say, `configured`, with the `changes` of operators,
    without those that have no effect any more, `dropped`. `successor` is our side of the handover, if a predecessor
    lives."""

    configured: Config
    config: Config
    changes: Changes
    dropped: list[Change]
    generation: int
    equipment: Equipment
    inheritance: Inheritance
    stored: Stored
    config_error: str  # why the stored configuration is served, and not the file; else empty
    successor: Successor | None
    clients: list[tuple[dict[str, Any], int]] = field(default_factory=list)  # of the predecessor's runtime API
    phases: Phases | None = None  # of the handover, as far as it came


class Birth:
    """One attempt. Where it fails, withdraw() undoes what it did and tells the predecessor."""

    def __init__(self, loop: Loop, log: Log, options: Options, store: Store, managed: bool) -> None:
        """`managed`: by systemd."""
        self._loop = loop
        self._log = log
        self._options = options
        self._store = store
        self._managed = managed
        self._successor: Successor | None = None
        self._equipment: Equipment | None = None
        self._config_error = ""
        self._lost = False  # the predecessor is dead

    def come_up(self, summons: Summons | None) -> Born:
        """Raises HitlessdError, for a person to read."""
        if summons:
            self._successor = summoned(self._loop, summons, _FIRST_PATIENCE)
        stored = self._store.recover(inherited_descriptors(), self._log)
        configured = self._configuration(stored)
        self._log.configure(configured.global_.log)
        if not stored.state:
            Pidfile(self._options.pidfile).check()
        inheritance = self._inherit(configured, stored)
        changes = self._changes(inheritance)
        config, dropped = effective(configured, changes)
        generation = self._log.generation = inheritance.generation + 1
        try:
            equipment = self._equip(configured, config, generation, inheritance)
        except (SystemRefused, ConfigError) as error:
            # A file that is valid but cannot be served is no better than a broken one.
            if self._config_error or self._successor or not stored.state or not stored.state.files:
                raise
            self._fall_back(error)
            configured = _stored_configuration(stored.state)
            config, dropped = effective(configured, changes)
            equipment = self._equip(configured, config, generation, inheritance)
        self._equipment = equipment
        clients = self._start_accepting(config, equipment, inheritance)
        successor = None if self._lost else self._successor
        phases = self._successor.phases if self._successor else None
        return Born(
            configured,
            config,
            keep(changes, dropped),
            dropped,
            generation,
            equipment,
            inheritance,
            stored,
            self._config_error,
            successor,
            clients,
            phases,
        )

    def withdraw(self, reason: str) -> None:
        """Undo what was opened, and tell the predecessor why it serves on."""
        if self._equipment:
            self._equipment.withdraw()
        if self._successor and not self._lost:
            self._successor.refuse(reason)

    def _configuration(self, stored: Stored) -> Config:
        """The files' configuration; where they are broken and systemd has kept what ran last, that."""
        try:
            return load(self._options.files)
        except ConfigError as error:
            if not stored.state or not stored.state.files:
                raise
            self._fall_back(error)
            return _stored_configuration(stored.state)

    def _fall_back(self, error: HitlessdError) -> None:
        self._config_error = str(error)
        for line in self._config_error.splitlines():
            self._log("err", line, event=failure(error))
        text = "cannot use the configuration as it is now; serving the one that ran last"
        self._log("err", text, event=Event.LAST_GOOD_SERVED)

    def _inherit(self, config: Config, stored: Stored) -> Inheritance:
        patience = config.global_.reload_timeout
        path = self._options.predecessor
        if path and not self._successor:
            self._successor = connect(self._loop, path, patience)
            if not self._successor:
                return take_foreign(path, min(_FOREIGN_PATIENCE, patience), self._log)
        if not self._successor:
            return from_store(stored)
        self._successor.timeout = patience
        try:
            return from_offer(self._successor.introduce(), self._log)
        except PredecessorLost as error:
            self._go_on_alone(error)
            return Inheritance()

    def _go_on_alone(self, error: PredecessorLost) -> None:
        """The predecessor is dead. Under systemd it was the unit's main process: the unit restarts, from the store."""
        self._lost = True
        if self._managed:
            raise PeerError(f"cannot take over: {error}; systemd restarts the unit") from error
        self._log("err", f"the predecessor is gone ({error}): going on alone", event=Event.PREDECESSOR_LOST)

    def _changes(self, inheritance: Inheritance) -> Changes:
        try:
            return Changes.load(inheritance.changes)
        except (TypeError, ValueError) as error:
            text = f"cannot use what operators have changed: {error}"
            self._log("warning", text, event=Event.PASSED_UNUSABLE)
            return Changes()

    def _equip(self, configured: Config, config: Config, generation: int, inheritance: Inheritance) -> Equipment:
        deadline = self._loop.time() + _LAST_GASP
        while True:
            try:
                return equip(
                    configured,
                    config,
                    inheritance,
                    loop=self._loop,
                    log=self._log,
                    store=self._store,
                    generation=generation,
                    replace=inheritance.foreign or bool(self._options.finish or self._options.terminate),
                    patience=config.global_.reload_timeout,
                )
            except SystemRefused:
                # A killed predecessor's workers take a moment to die and to let go of its addresses.
                if not self._lost or self._loop.time() > deadline:
                    raise
                self._loop.turn(0.02)

    def _start_accepting(
        self, config: Config, equipment: Equipment, inheritance: Inheritance
    ) -> list[tuple[dict[str, Any], int]]:
        """Returns the clients of the predecessor's runtime API: then we are the main process."""
        patience = config.global_.reload_timeout
        clients: list[dict[str, Any]] = []
        fds: list[int] = []
        if self._successor and not self._lost:
            try:
                self._successor.ready(equipment.kept(inheritance), [pid for _, pid in equipment.pool.members()])
                equipment.accept(self._loop, patience)
                clients, fds = self._successor.accepting()
            except PredecessorLost as error:
                self._go_on_alone(error)
        if not equipment.accepting:
            equipment.accept(self._loop, patience)
        return list(zip(clients, fds, strict=False))


def failure(error: HitlessdError) -> Event:
    """What a start that fails for this reason is called in the journal."""
    if isinstance(error, ConfigError):
        return Event.CONFIGURATION_INVALID
    return Event.LISTENER_FAILED if isinstance(error, ListenerRefused) else Event.START_FAILED


def _stored_configuration(state: State) -> Config:
    """What ran last, with the addresses that its servers had then."""

    def resolver(name: str) -> Sequence[str]:
        return state.resolved.get(name, ())

    return parse(state.files, resolver=resolver)
