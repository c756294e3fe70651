/* A pool of threads, each with its share of the work, which it takes in small chunks: what a thread that the system has
 * put aside leaves, others take, so that it holds up one chunk only. It spins briefly for the next phase and then
 * sleeps. */
#ifndef LD_POOL_H
#define LD_POOL_H

#include <stdint.h>

typedef void (*Work)(void *context, int64_t from, int64_t to);

/* One call at a time has the pool, and the workspace with it. */
void pool_lock(void);
void pool_unlock(void);

/* Work over [0, count) in chunks, by the pool and the caller together; returns when all is done. */
void parallel(Work work, void *context, int64_t count, int64_t chunk);

#endif
