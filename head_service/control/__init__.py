"""The control plane: training runs taken from a queue by a worker process, and feedback kept durably.

Read downwards: `__main__` → `api` (HTTP) and `worker` → `runs`, `feedback`, `uploads` (what is kept) → `store` (the database)
→ `states` (what may follow what; pure). The database is the truth; the queue in `wakeup` only wakes workers.
"""
