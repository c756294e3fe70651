/* A pool of threads. Each takes its share of the work in chunks; the others take over the rest of a thread that the
 * system has suspended. Threads spin briefly for the next phase, then sleep. */
#ifndef LD_POOL_H
#define LD_POOL_H

#include <stdint.h>

enum { MOST_THREADS = 64 };

typedef void (*Work)(void *context, int64_t from, int64_t to);

/* One call at a time holds the pool, and the workspace with it. */
void pool_lock(void);
void pool_unlock(void);

/* Number of this thread in the pool, below MOST_THREADS; the caller's is 0. */
int pool_thread(void);

/* Threads, with the caller. */
int pool_threads(void);

/* Run work over [0, count) in chunks, by the pool and the caller together; returns when all are done. */
void parallel(Work work, void *context, int64_t count, int64_t chunk);

#endif
