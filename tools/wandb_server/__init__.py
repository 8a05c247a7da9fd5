"""A W&B server on the loopback, for tests and the demo; no test double of the client.

The genuine client talks to it with nothing set but ``WANDB_BASE_URL`` and ``WANDB_API_KEY``. It
speaks what wandb 0.31 needs, and fails on demand.

A run's life, as the client tells it:

1. ``RunResumeStatus`` (GraphQL, only with ``resume=``): does the run exist? It does if the config
   its client stored has ``_wandb.t``. The answer's line counts, tails, summary and config are what
   the client goes on from.
2. ``UpsertBucket`` makes the run. A ``historyLineCount`` above zero in its answer becomes the
   client's next offset, even without ``resume``.
3. ``file_stream`` posts carry rows, each at an offset the client counts itself; a post that got no
   2xx is sent again, the same lines at the same offsets. Statuses that are not worth a retry (400,
   401, 403, 404, …) end the stream for good, and the client's ``finish()`` still returns.
4. ``CreateRunFiles`` and signed ``PUT`` links carry files. A logged table is such a file and an
   artifact: ``CreateArtifact``, ``CreateArtifactFiles``, ``CreateArtifactManifest``, ``PUT``,
   ``CommitArtifact``.
5. A last ``file_stream`` post with ``complete`` and ``exitcode`` ends the run.
6. The public API reads back: runs and their fields by ``Run`` and ``Runs``, rows by
   ``RunParquetHistory`` (nothing is exported here) and then ``HistoryPage`` by ranges of steps, or
   ``SampledHistoryPage`` when keys are named.

Where a real server's way is not known, this one is plain: rows of equal ``_step`` are all kept and
all shown, the line count is the greatest offset plus one, a config is replaced by the next one.

Start it with ``python tools/wandb_server --data DIR --key KEY``; see ``app`` for the requests,
``faults`` for what can be made to fail, ``report`` for what it tells of itself.
"""
