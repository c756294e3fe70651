#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "abi.h"

enum { SPINS = 4000, PATIENCE = 200, MOST_THREADS = 64 };

/* A thread's share of the work, on a cache line of its own. */
typedef struct {
    _Alignas(64) _Atomic int64_t next;
    int64_t end;
} Share;

static struct {
    pthread_mutex_t calls, sleep;
    pthread_cond_t wake;
    int threads; /* without the caller */
    Work work;
    void *context;
    int64_t chunk;
    Share shares[MOST_THREADS]; /* the caller's is the first */
    _Atomic int64_t done;
    _Atomic uint64_t phase;
    _Atomic int sleepers, inside;
} pool = {.calls = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

void pool_lock(void) { pthread_mutex_lock(&pool.calls); }
void pool_unlock(void) { pthread_mutex_unlock(&pool.calls); }

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* A thread works through its own share from the start, so that it reads memory in order; then it takes chunks from the
 * others' shares, as these may be waiting for a processor. */
static void take_chunks(int thread) {
    for (int i = 0; i <= pool.threads; i++) {
        Share *share = pool.shares + (thread + i) % (pool.threads + 1);
        for (;;) {
            int64_t from = atomic_fetch_add(&share->next, pool.chunk);
            if (from >= share->end) break;
            int64_t to = from + pool.chunk < share->end ? from + pool.chunk : share->end;
            pool.work(pool.context, from, to);
            atomic_fetch_add(&pool.done, to - from);
        }
    }
}

/* Even phases are open; at odd numbers the caller prepares the next one. */
static inline int is_new(uint64_t phase, uint64_t seen) { return phase != seen && phase % 2 == 0; }

static void *worker(void *number) {
    uint64_t seen = 0;
    for (;;) {
        uint64_t phase;
        for (int i = 0; !is_new(phase = atomic_load(&pool.phase), seen) && i < SPINS; i++) relax();
        if (!is_new(phase, seen)) {
            pthread_mutex_lock(&pool.sleep);
            atomic_fetch_add(&pool.sleepers, 1);
            while (!is_new(phase = atomic_load(&pool.phase), seen)) pthread_cond_wait(&pool.wake, &pool.sleep);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.sleep);
        }
        seen = phase;
        /* Announce first, then look again. The caller closes a phase first and then looks for threads inside, so one
         * of the two sees the other. */
        atomic_fetch_add(&pool.inside, 1);
        if (atomic_load(&pool.phase) == seen) take_chunks((int)(intptr_t)number);
        atomic_fetch_sub(&pool.inside, 1);
    }
    return NULL;
}

void parallel(Work work, void *context, int64_t count, int64_t chunk) {
    if (!pool.threads || count <= chunk) {
        work(context, 0, count);
        return;
    }
    atomic_fetch_add(&pool.phase, 1);
    for (int i = 0; atomic_load(&pool.inside); i++) i < PATIENCE ? relax() : (void)sched_yield();
    pool.work = work;
    pool.context = context;
    pool.chunk = chunk;
    atomic_store(&pool.done, 0);
    int64_t chunks = (count + chunk - 1) / chunk, threads = pool.threads + 1;
    for (int64_t i = 0; i < threads; i++) {
        int64_t end = chunks * (i + 1) / threads * chunk;
        atomic_store(&pool.shares[i].next, chunks * i / threads * chunk);
        pool.shares[i].end = end < count ? end : count;
    }
    atomic_fetch_add(&pool.phase, 1);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.sleep);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep);
    }
    take_chunks(0);
    for (int i = 0; atomic_load(&pool.done) < count; i++) i < PATIENCE ? relax() : (void)sched_yield();
}

/* A forked child has none of the parent's threads, wherever these are at the time. */
static void in_child(void) {
    pool.threads = 0;
    atomic_store(&pool.inside, 0);
    atomic_store(&pool.sleepers, 0);
    pool.calls = pool.sleep = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    pool.wake = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
}

/* Fork between two calls, so that the child has no half of one. */
__attribute__((constructor)) static void at_load(void) { pthread_atfork(pool_lock, pool_unlock, in_child); }

int ld_threads(int64_t threads) {
    int status = LD_OK;
    pool_lock();
    while (status == LD_OK && pool.threads < threads - 1 && pool.threads < MOST_THREADS - 1) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)(pool.threads + 1))) {
            status = LD_NO_THREADS;
        } else {
            pthread_detach(thread);
            pool.threads++;
        }
    }
    pool_unlock();
    return status;
}
