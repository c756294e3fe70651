/* A pool of threads that takes small chunks of work from a counter, so that a thread which the system has put aside
 * holds up one chunk only. It spins briefly for the next phase and then sleeps. */
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
