"""What each client works with: one mixture for all, or one of its own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from flwr.app import RecordDict

from common.config import Aggregation, WireFormat
from common.mixture_arrays import Arrays
from common.wire.compressed import as_received
from common.wire.rounds import TrainReply, instruction
from server.aggregation import WeightedMean


class ClientMixtures:
    """The mixture of every client: `shared`, until updates are kept apart (aggregation "none").

    Those of their own are all held in memory: a megabyte or two a client. What is held is float32, whatever travels;
    in int8, updates are changes of what the clients were sent.
    """

    def __init__(self, shared: Arrays, aggregation: Aggregation, wire_format: WireFormat = "float32") -> None:
        self.shared = shared
        self.own: dict[int, Arrays] = {}
        self._aggregation = aggregation
        self._wire_format = wire_format

    def merge(self, updates: Mapping[int, TrainReply]) -> None:
        """Take in a round's checked updates, in the order of the clients."""
        if self._wire_format == "int8":
            shared = as_received(self.shared)
            updates = {client: self._changed(client, update, shared) for client, update in updates.items()}
        if self._aggregation == "none":
            self.own |= {client: self.of(client) | update.arrays for client, update in updates.items()}
            return
        mean = WeightedMean(by_use=self._aggregation == "usage")
        for update in updates.values():
            mean.add(update)
        self.shared = mean.merge_into(self.shared)

    def _changed(self, client: int, update: TrainReply, shared: Arrays) -> TrainReply:
        """Return an update with the values that its change gives; `shared` is as those without their own got it."""
        sent = as_received(self.own[client]) if client in self.own else shared
        return replace(update, arrays={name: sent[name] + change for name, change in update.arrays.items()})

    def of(self, client: int) -> Arrays:
        """Return a client's mixture."""
        return self.own.get(client, self.shared)

    def instructions(self, server_round: int, tasks: Sequence[str], clients: Iterable[int]) -> dict[int, RecordDict]:
        """Build what each client is sent; those who share a mixture share the message."""
        shared = instruction(server_round, self.shared, tasks, self._wire_format)
        return {
            client: instruction(server_round, self.own[client], tasks, self._wire_format)
            if client in self.own
            else shared
            for client in clients
        }
