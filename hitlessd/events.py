"""What happens that operators look for: each has a MESSAGE_ID by which the journal finds it (docs/journal.md).

An id was made once, with `systemd-id128 new`, and means the same for ever: what an event means never changes, and the
id of one that is no more is not used again. units/hitlessd.catalog explains each to whoever asks `journalctl -x`.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Event"]


class Event(Enum):
    """A kind of log entry: the MESSAGE_ID, and what it means in a line. Every member is logged somewhere."""

    def __init__(self, message_id: str, meaning: str) -> None:
        self.message_id = message_id
        self.meaning = meaning

    # A generation comes and goes
    STARTED = "eea3906d253247ba9da4e8dfb1cec1ff", "serves; the start is over"
    START_FAILED = "6447f1ed658a4132ac163a343eb0d840", "the start, or a successor's, came to nothing"
    CONFIGURATION_INVALID = "11999bcc4eb04adca1bffcc55d37c567", "a configuration file is wrong"
    LAST_GOOD_SERVED = "1297c1a4e69e4a88bc9bca0e8c185891", "what ran last is served, since the files cannot be used"
    CONFIGURATION_WARNING = (
        "aa60ef7bbb9f4179a8cdca8508682d91",
        "the configuration is used, but something in it is doubtful",
    )
    STOPPING = "2d8a2e7eea1f49acba48cce5b201f948", "told to stop"
    FINISHING = "2b828fe5828c42e9bfdd8ae837bbf1b1", "told to serve who is there and then end"
    GENERATION_DRAINED = (
        "1ea8b79dc7e04a869ce4f38fc3e8a254",
        "an older generation, or one that finishes, has no connection left and ends",
    )
    HARD_STOP = "51f385f0654c4ae288aef97802b66622", "hard-stop-after has run out: what is left is closed"
    GENERATION_LOST = "0a1c88bd29524e53a235d690ac410f3b", "an older generation died before its connections had ended"
    ACCEPTING_PAUSED = "63944451060249cbaf23e407d1020a9d", "nothing is accepted until further notice"
    ACCEPTING_RESUMED = "082ebf2e28e74e83affb274b76d6638e", "connections are accepted again"
    WATCHDOG_NEAR = (
        "954d4c9fcd6a4a568f62703c056b68ef",
        "the main process was held up for so long that systemd nearly ended it",
    )

    # Reloads and takeovers
    RELOAD_STARTED = "725301ddfe0941b98951677530f58e57", "a successor was started"
    RELOAD_DONE = "ffd886b802a4443782339845dc553040", "the successor serves"
    RELOAD_REFUSED = "6f7e1042921e40999513e7dae38fa1ad", "a reload came to nothing, and the old generation serves on"
    SUCCESSOR_LOST = "817c48cc39634e19be7061666b779b01", "the successor died, or fell silent, during a reload"
    PREDECESSOR_LOST = (
        "e704b6c0fdd14cd0ba74cf1caa3665e9",
        "the predecessor died during a reload or takeover, and its successor goes on alone",
    )
    HANDED_OVER = "4075c772a13442f387c98801d21f07d5", "an old generation has given all that it could to the new one"
    TAKEOVER_STARTED = "16979b3e0f3447429c112b4c2d667a08", "somebody outside the unit takes over from us"
    TAKEOVER_REFUSED = "fc1beb1c9f5248a0ab450d391a5fef77", "somebody who wanted to take over was not allowed to"
    LISTENERS_GIVEN = "ab3902c74b204c0e9ccd89b0fb268aae", "copies of the listeners went to a haproxy"
    LISTENERS_TAKEN = "1ad3d54bef684c2c990d0ecd02116980", "copies of the listeners came from a haproxy"
    PASSED_UNUSABLE = (
        "b43a85e36cbf45b7a792feb390222216",
        "something that a predecessor or systemd passed on cannot be used, and is left out",
    )

    # Listeners and limits
    LISTENER_ADDED = "f5ab87b55c0c47acb9e72b57f28d6160", "a reload has opened a listener"
    LISTENER_REMOVED = "6d66d03d3b214b379594f99e915111df", "a reload has closed a listener"
    LISTENER_FAILED = "d4fb45867b5446d5916d396bf7791c4e", "a listener cannot be opened"
    ACCEPT_FAILED = "df8b25e550d144f5a5e3a61648ab3dd8", "accept(2) fails, and clients wait"
    LIMIT_REACHED = "37e2aea4cd0e465098b71d93010f0388", "a maxconn or a rate limit is reached, and clients wait"
    DESCRIPTORS_SHORT = "744c0d6420c849b589b869e99af8335d", "the limit on open files is too low"
    STORE_SMALL = "42d46c93a78a4cfcbc312e010c7c1335", "systemd's descriptor store is too small"
    FILE_FAILED = "67b978f579f24a32a9a913dcf810e85d", "a pid file, or mode and owner of a socket file, cannot be set"
    SIGNAL_FAILED = "a10647e9d5514f31abcb6ccb55ed9283", "another process cannot be signalled"

    # Connections
    CONNECTIONS_MOVED = "d96d69775e2341bca2762de6f8dee388", "connections moved from the old generation to the new one"
    CONNECTIONS_KEPT = "acaf7884e71044d18bd17a8b01a53b1a", "connections stay with the old generation"
    CONNECTIONS_PARKED = "97a058bb0551415a9ad31a7a30a74f78", "connections were left to systemd, for the next start"
    CONNECTIONS_RESUMED = (
        "e2e5c0c690b547bb955771c55ba49db8",
        "connections go on after a restart, or after the death of whoever served them",
    )
    CONNECTIONS_LOST = "bfc2a2d177ee46a48e90ee3d292753f6", "connections were reset because nobody can go on with them"
    MOVING_FAILED = "99531b328dab49b68f721fde9a7b5f65", "connections cannot move to the new generation"
    PARKING_FAILED = (
        "2ecbcd3326cc466ba65e0b21d5269fa6",
        "connections cannot be parked, and would not outlive their worker",
    )
    PARK_UNUSABLE = "2a23ec87e1754959b95f6adb1583deaf", "parked connections cannot be read"
    CRASH_PROOF_OFF = "dbe37aa22b86446791dc68d2f9b9eff2", "this system does not let connections outlive a crash"
    CLIENT_FAILED = "9ecda7440b1c4a718fb4b34259117a6d", "a client that was accepted cannot be served"
    CONNECT_FAILED = "e6d1ec9a3b6743e88ab6d2968a43ba4f", "a server cannot be connected to, for a reason that is ours"
    REQUEST_REFUSED = "1782c251298f4bf481363f5d490ff432", "a client sent what is no request"
    RESPONSE_REFUSED = "d283d0f9c3894e1d810d8d8698234863", "a server sent what is no response"

    # Processes
    WORKER_DIED = "4c29c4a213824652b37bc118f3a587be", "a worker ended, and is replaced"
    WORKER_SILENT = "bc69cf04cd4e450a8df9fb627acdf22e", "a worker does not answer, and is killed"
    WORKER_MISSING = "32b79a283f0346cb9d13f188bb0a4905", "a worker cannot be started"
    MAIN_LOST = "dc8152a8b7b742e1b27c2d12f4901bd0", "the main process is gone, and a worker ends"
    BUG = "58108eabf38946b38ecc1d57b0148395", "an error in hitlessd itself"

    # Servers
    SERVER_UP = "43b8e5c32b5545039f4824342c392613", "a server has passed its checks"
    SERVER_DOWN = "5ecc195ce8cd4647a52995e4363e8d90", "a server has failed its checks"
    SERVER_READY = "d1be93aa4f774d73a1399b4e99e0bae7", "an operator let a server serve again"
    SERVER_DRAIN = "c92978e346a5412a9fe88772350a3649", "an operator let a server have no new sessions"
    SERVER_MAINT = "52e724dafcd9488e9f27f7488419d2cc", "an operator put a server into maintenance"
    BACKEND_DOWN = "d2dd827863ad40c587551a71ae18b781", "a backend has no server left"
    CHECK_FAILED = "9e2a3b73d8e74fc1bbcee5d34d16104c", "a server cannot be checked, for a reason that is ours"

    # The runtime API and the log
    CHANGE_MADE = "b11045d0fc32487cac6a0c4bb838daea", "an operator has changed something at run time"
    CHANGE_DROPPED = (
        "7de84303931a4e69bb30996466ae1c4f",
        "a change made at run time is over: the configuration says something new of it",
    )
    CHANGE_FAILED = "0b82aea46ee0452bac7c709dc54bee77", "a change made at run time could not be done everywhere"
    RUNTIME_CLIENT_DROPPED = (
        "054b2b1f58914dbebd177030c071cbae",
        "a client of the runtime API was disconnected, or not let in",
    )
    WEB_CLIENT_DROPPED = (
        "71b3728e67ac46a6ae638a412682dfab",
        "a client of the page or of the metrics was disconnected, or not let in",
    )
    LOG_LINES_LOST = "565ca4d3c71d4737860af2adcc87cb04", "log lines were lost, since nobody read them"
