"""Windows from a source that runs by itself: a market feed, a robot, a building."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.types import EpisodeData
from tensor_optix.pipeline.acting import Memory, choose_alone
from tensor_optix.pipeline.conversion import as_observation, check_observation_space
from tensor_optix.pipeline.feed import Counts, Feed, Item, Retry
from tensor_optix.pipeline.rows import Rows, positive, positive_seconds, window_of

Boundary = Callable[[int, float, Any], bool]

_WINDOW = 200  # rows, where no boundary is given
_SHOWN = 200  # characters of a bad item in an error
_NOT_CHOSEN = object()


class LivePipeline(BasePipeline):
    """Windows from `data_source.stream()`, whose items are (obs, reward, terminated, truncated, info).

    How rows are formed: the agent chooses an action for obs_t; reward, flags and info of the *next* item are what that
    action brought. Row t is (obs_t, its action, reward, flags and info of item t+1), and obs_{t+1} is its next
    observation. The first item of a stream has no action before it: only its observation is used. The observation of
    an item that ends an episode is that episode's final one; the item after it begins a new episode.

    If the source has `send_action(action)`, it is called in the thread that iterates `episodes()`, right after the
    action is chosen; such a source does best to yield its next item only then. Without it, actions are only recorded.
    An `action_space` or `observation_space` of the source is used as Gymnasium means it.

    A background thread reads the stream into a buffer of `buffer_size` items. When that is full the source waits
    (`when_full="wait"`), or the oldest item is thrown away ("drop_oldest"; given here or as the source's attribute
    `when_full`). No row bridges a gap: there the episode is cut, which counts as truncated after its last whole row.

    An exception of the stream or of `send_action` is a disconnect: the episode is cut and `stream()` is called again,
    after `reconnect_wait_s` seconds, doubled up to `max_wait_s` for each further attempt without an item; after
    `max_reconnects_in_a_row` of these, RuntimeError. With `reconnect_on_disconnect=False` the first is a RuntimeError.
    If `item_timeout_s` is given, a source that is silent that long counts as disconnected. The end of the stream is
    the end of the windows; the last is as long as it got.

    Args:
        data_source: has `stream()`, and maybe `send_action`, `close` (called by `teardown`) and the attributes above.
        agent: chooses actions.
        episode_boundary_fn: (rows so far, seconds since the window's first action, newest observation) -> True where
            the *window* is over; asked after every row. Every 200 rows by default.
        buffer_size: in items.
        reconnect_on_disconnect, when_full, reconnect_wait_s, max_wait_s, max_reconnects_in_a_row: see above.
        item_timeout_s: see above; never by default.
        deterministic: ask the agent's `act_deterministic`, if it has one.
        clock: seconds, for `episode_boundary_fn`.

    A window's `episode_starts` is a list of rows; `final_obs` is the true next observation of its last row; `metadata`
    holds "final_observations" (row that ended an episode -> its final observation), "cut" (rows after which a gap ended
    the episode), "tails" (rows that begin in the middle of an episode, what was before having been dropped) and
    "dropped" (items thrown away since the window before). With a recurrent agent `hidden_states` [1, C] is what it
    remembered before the first row (None: nothing).
    """

    def __init__(
        self,
        data_source: Any,
        agent: BaseAgent | None = None,
        episode_boundary_fn: Boundary | None = None,
        buffer_size: int = 1000,
        reconnect_on_disconnect: bool = True,
        *,
        when_full: str | None = None,
        reconnect_wait_s: float = 0.1,
        max_wait_s: float = 5.0,
        max_reconnects_in_a_row: int = 10,
        item_timeout_s: float | None = None,
        deterministic: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if episode_boundary_fn is not None and not callable(episode_boundary_fn):
            raise TypeError(
                "episode_boundary_fn must be a function (step_count, elapsed_s, obs) -> bool, such as "
                f"LivePipeline.every_n_steps(200), got {episode_boundary_fn!r}"
            )
        when_full = getattr(data_source, "when_full", "wait") if when_full is None else when_full
        if when_full not in ("wait", "drop_oldest"):
            raise ValueError(f'when_full must be "wait" or "drop_oldest", got {when_full!r}')
        self._source, self._agent, self._deterministic = data_source, agent, deterministic
        self._boundary = self.every_n_steps(_WINDOW) if episode_boundary_fn is None else episode_boundary_fn
        self._buffer_size, self._drop_oldest = positive("buffer_size", buffer_size), when_full == "drop_oldest"
        self._retry = Retry(
            reconnect_on_disconnect,
            positive_seconds("reconnect_wait_s", reconnect_wait_s),
            positive_seconds("max_wait_s", max_wait_s),
            positive("max_reconnects_in_a_row", max_reconnects_in_a_row),
        )
        self._item_timeout_s = None if item_timeout_s is None else positive_seconds("item_timeout_s", item_timeout_s)
        self._clock = clock
        self._counts = Counts()
        self._dropped_told = 0  # in the metadata of a window
        self._episode_id = 0  # windows so far
        self._feed: Feed | None = None
        self._forget()

    @staticmethod
    def every_n_steps(n: int) -> Boundary:
        """A window is over after `n` rows."""
        n = positive("n", n)
        return lambda step_count, elapsed_s, obs: step_count >= n

    @staticmethod
    def every_n_seconds(s: float) -> Boundary:
        """A window is over with the first row that is complete `s` seconds or more after its first action."""
        s = positive_seconds("s", s)
        return lambda step_count, elapsed_s, obs: elapsed_s >= s

    @staticmethod
    def on_done_signal() -> Boundary:
        """A window is over where an episode is: at `terminated`, `truncated`, or a gap that cut it."""
        return _at_ends

    @property
    def is_live(self) -> bool:
        return True

    @property
    def spaces(self) -> tuple[Any, Any]:
        """(observation space, action space) of the source; None for what it does not tell."""
        return getattr(self._source, "observation_space", None), getattr(self._source, "action_space", None)

    @property
    def n_disconnects(self) -> int:
        """Connections lost so far."""
        return self._counts.disconnects

    @property
    def n_dropped(self) -> int:
        """Items thrown away so far."""
        return self._counts.dropped

    def set_agent(self, agent: BaseAgent) -> None:
        """Let `agent` act from the next observation on."""
        self._agent = agent

    def setup(self) -> None:
        """Start to read the source; nothing if that is done already. TypeError for a source without `stream`."""
        if self._feed is not None:
            return
        if not callable(getattr(self._source, "stream", None)):
            is_env = hasattr(self._source, "reset") and hasattr(self._source, "step")
            hint = "it looks like a Gymnasium environment, for which there is BatchPipeline" if is_env else "add one"
            raise TypeError(f"data_source {type(self._source).__name__} has no stream(): {hint}")
        check_observation_space(getattr(self._source, "observation_space", None))
        self._forget()
        self._feed = Feed(
            self._source.stream,
            self._parse,
            self._buffer_size,
            self._drop_oldest,
            self._retry,
            self._item_timeout_s,
            self._counts,
        )
        self._feed.start()

    def episodes(self) -> Iterator[EpisodeData]:
        """Windows until the source ends or `teardown`; calls `setup` if nobody has. ValueError without an agent."""
        if self._agent is None:
            raise ValueError("LivePipeline has no agent: give one as agent= or with set_agent()")
        return self._windows()

    def teardown(self) -> None:
        """Stop reading and close the source; may be called again, and from another thread."""
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.stop(getattr(self._source, "close", None))

    def state_dict(self) -> dict[str, Any]:
        """What can be kept of a source that goes on by itself: the number of the next window."""
        return {"episode_id": self._episode_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Take over a saved `state_dict`; returns a sentence about what cannot be put back."""
        self._episode_id = int(state["episode_id"])
        return ["a live source goes on from where it is now; what was under way in it is not put back"]

    def _forget(self) -> None:
        """Begin as if nothing had been seen."""
        self._obs: np.ndarray | None = None  # waits for its action and what that brings; None: an episode is to begin
        self._action: Any = _NOT_CHOSEN  # for `_obs`
        self._connection = 0  # that brought `_obs`
        self._begins = self._tail = False  # the row of `_obs` is the first of its episode; of what is left of it
        self._shape: tuple[int, ...] | None = None  # of every observation
        self._memory = Memory()

    def _windows(self) -> Iterator[EpisodeData]:
        self.setup()
        feed = self._feed
        while feed is not None and not feed.closed:
            window = self._window(feed)
            if window is None:
                return
            self._episode_id += 1
            yield window

    def _window(self, feed: Feed) -> EpisodeData | None:
        """The next window; None if there is no row left for one."""
        rows, tails, over = Rows(), list[int](), False
        began, hidden = self._clock(), None
        while not over:
            self._act(feed)
            if not rows:
                began = self._clock()
                hidden = None if self._memory.of(self._agent) is None else self._memory.before
            item = feed.get()
            if item is None:
                if feed.broken:
                    rows.cut()
                break
            added = self._take(item, rows, tails)
            over = self._is_over(rows, added, began)
        if feed.closed or not rows:
            return None
        dropped, self._dropped_told = self._counts.dropped - self._dropped_told, self._counts.dropped
        metadata = {"dropped": dropped, "cut": rows.cuts, "tails": tails}
        return window_of([rows], self._episode_id, np.array(rows.next_obs), metadata, hidden)

    def _act(self, feed: Feed) -> None:
        """Choose the action for the newest observation, once, and hand it to the source."""
        if self._obs is None or self._action is not _NOT_CHOSEN:
            return
        space, begins = getattr(self._source, "action_space", None), [self._begins]
        chosen = choose_alone(self._agent, self._deterministic, self._memory, space, [self._obs], [0], begins)
        self._action, sent = chosen[0]
        send = getattr(self._source, "send_action", None)
        if send is not None:
            try:
                send(sent)
            except Exception as error:
                feed.lost(self._connection, error)

    def _take(self, item: Item, rows: Rows, tails: list[int]) -> bool:
        """Go on to the item; True if that completed a row."""
        if item.begins:  # what the newest action led to will not be known
            rows.cut()
            self._obs = None
        complete = self._obs is not None
        if self._obs is None:
            self._begins, self._tail = True, item.tail
        else:
            if item.reward is None:
                raise ValueError("an item of the data source has no reward; only the first of a stream or episode may")
            if self._tail:
                tails.append(len(rows))
            flags = item.terminated, item.truncated
            rows.add(self._obs, self._action, item.reward, *flags, item.info, item.obs, self._begins)
            self._begins = self._tail = False
        self._obs = None if item.ended else item.obs
        self._action, self._connection = _NOT_CHOSEN, item.connection
        return complete

    def _is_over(self, rows: Rows, added: bool, began: float) -> bool:
        if self._boundary is _at_ends:
            return bool(rows) and (rows.terminated[-1] or rows.truncated[-1])
        return added and bool(self._boundary(len(rows), self._clock() - began, rows.next_obs))

    def _parse(self, raw: Any) -> Item:
        """A source's item, copied. ValueError or TypeError for what is none."""
        expected = "data_source.stream() must yield (obs, reward, terminated, truncated, info)"
        if not isinstance(raw, tuple | list) or len(raw) != 5:
            count = f" of {len(raw)}" if isinstance(raw, tuple | list) else ""
            raise ValueError(f"{expected}, got a {type(raw).__name__}{count}: {raw!r}"[:_SHOWN])
        try:
            obs = as_observation(raw[0], getattr(self._source, "observation_space", None))
            reward = None if raw[1] is None else float(raw[1])
            item = Item(obs, reward, bool(raw[2]), bool(raw[3]), dict(raw[4] or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{expected}, got {raw!r}"[:_SHOWN] + f" ({error})") from error
        if obs.dtype.kind not in "biufc":
            raise TypeError(f"observations must be arrays of numbers, got {raw[0]!r}"[:_SHOWN])
        if self._shape is None:
            self._shape = obs.shape
        if obs.shape != self._shape:
            raise ValueError(f"observations must keep their shape: the first had {self._shape}, now {obs.shape} came")
        return item


def _at_ends(step_count: int, elapsed_s: float, obs: Any) -> bool:
    """The boundary that LivePipeline knows by name: whether an episode is over is not among the arguments."""
    return False
