/* A pool of threads. Each takes its share of the work in small chunks; the others take over the chunks of a thread that
 * the system has suspended, so it delays one chunk only. Threads spin briefly for the next phase, then sleep. */
#ifndef LD_POOL_H
#define LD_POOL_H

#include <stdint.h>

typedef void (*Work)(void *context, int64_t from, int64_t to);

/* One call at a time holds the pool, and the workspace with it. */
void pool_lock(void);
void pool_unlock(void);

/* Run work over [0, count) in chunks, by the pool and the caller together; returns when all are done. */
void parallel(Work work, void *context, int64_t count, int64_t chunk);

#endif
