"""The main process: control only. Configuration, runtime socket, systemd, handover; it never touches traffic."""
