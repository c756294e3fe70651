#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "abi.h"

enum { SPINS = 4000, PATIENCE = 200 };

/* How many chunks of a thread's share are taken, in the low half, in the phase whose number is in the high half. In
 * any other phase none is, so that nobody has to reset it. Alone on its cache line. */
typedef struct {
    _Alignas(64) _Atomic uint64_t taken;
} Share;

static struct {
    pthread_mutex_t calls, sleep;
    pthread_cond_t wake;
    int threads; /* without the caller */
    /* A phase is written by the caller alone, while its number is odd. A thread that reads the same even number before
     * and after the rest has read one phase. All on one cache line, which the threads wait for. */
    _Alignas(64) _Atomic uint64_t phase;
    _Atomic Work work;
    void *_Atomic context;
    _Atomic int64_t count, chunk, sharers; /* sharers: threads at its start */
    _Alignas(64) _Atomic int64_t done; /* by all threads but the caller, in all phases */
    _Atomic int sleepers;
    Share shares[MOST_THREADS]; /* the caller's is the first */
} pool = {.calls = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static _Thread_local int thread_number; /* 0: any caller */

void pool_lock(void) { pthread_mutex_lock(&pool.calls); }
void pool_unlock(void) { pthread_mutex_unlock(&pool.calls); }

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#define READ(x) atomic_load_explicit(&pool.x, memory_order_relaxed)
#define WRITE(x, value) atomic_store_explicit(&pool.x, value, memory_order_relaxed)

int pool_thread(void) { return thread_number; }
int pool_threads(void) { return pool.threads + 1; }

/* Work through a phase and return how much of it this thread has done. Its share comes first and from the start,
 * so that it reads memory in order; then the others' shares, as these may be waiting for a processor. It takes half of
 * what is left each time: few turns, as each waits for all stores before it, and short ones at the end. Nobody takes
 * any of a phase that is over, as all its shares are taken then. */
static int64_t take_chunks(uint64_t phase) {
    Work work = READ(work);
    void *context = READ(context);
    int64_t count = READ(count), chunk = READ(chunk), threads = READ(sharers), self = thread_number, done = 0;
    int64_t chunks = (count + chunk - 1) / chunk;
    uint32_t number = (uint32_t)(phase / 2);
    atomic_thread_fence(memory_order_acquire);
    if (READ(phase) != phase) return 0;
    for (int64_t i = 0; i < threads; i++) {
        int64_t at = (self + i) % threads, first = chunks * at / threads, all = chunks * (at + 1) / threads - first;
        _Atomic uint64_t *share = &pool.shares[at].taken;
        uint64_t last = atomic_load_explicit(share, memory_order_relaxed);
        for (;;) {
            int32_t ahead = (int32_t)((uint32_t)(last >> 32) - number);
            int64_t taken = ahead ? 0 : (uint32_t)last, some = (all - taken + 1) / 2;
            if (taken >= all || (ahead > 0 && self)) break;
            uint64_t now = (uint64_t)number << 32 | (uint64_t)(taken + some);
            if (!atomic_compare_exchange_weak(share, &last, now)) continue;
            int64_t from = (first + taken) * chunk, to = from + some * chunk;
            if (to > count) to = count;
            work(context, from, to);
            done += to - from;
            last = now;
        }
    }
    return done;
}

static void *worker(void *number) {
    uint64_t seen = atomic_load(&pool.phase); /* what has begun without this thread was divided among the others */
    thread_number = (int)(intptr_t)number;
    for (;;) {
        uint64_t phase;
        for (int i = 0; (phase = atomic_load(&pool.phase)) == seen && i < SPINS; i++) relax();
        if (phase == seen) {
            pthread_mutex_lock(&pool.sleep);
            atomic_fetch_add(&pool.sleepers, 1);
            while ((phase = atomic_load(&pool.phase)) == seen) pthread_cond_wait(&pool.wake, &pool.sleep);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.sleep);
        }
        if (phase % 2) continue;
        seen = phase;
        int64_t done = take_chunks(phase);
        if (done) atomic_fetch_add(&pool.done, done);
    }
    return NULL;
}

void parallel(Work work, void *context, int64_t count, int64_t chunk) {
    if (!pool.threads || count <= chunk) {
        work(context, 0, count);
        return;
    }
    uint64_t phase = READ(phase) + 2;
    int64_t before = READ(done);
    WRITE(phase, phase - 1);
    atomic_thread_fence(memory_order_release);
    WRITE(work, work);
    WRITE(context, context);
    WRITE(count, count);
    WRITE(chunk, chunk);
    WRITE(sharers, pool.threads + 1);
    atomic_store_explicit(&pool.phase, phase, memory_order_release);
    if (READ(sleepers)) { /* one that falls asleep just now wakes at the next phase */
        pthread_mutex_lock(&pool.sleep);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep);
    }
    int64_t left = count - take_chunks(phase);
    for (int i = 0; atomic_load(&pool.done) - before < left; i++) i < PATIENCE ? relax() : (void)sched_yield();
}

#ifndef _WIN32 /* which does not fork */
/* A forked child has none of the parent's threads, wherever these are at the time. */
static void in_child(void) {
    pool.threads = 0;
    atomic_store(&pool.sleepers, 0);
    pool.calls = pool.sleep = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    pool.wake = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
}

/* Fork between two calls, so that the child has no half of one. */
__attribute__((constructor)) static void at_load(void) { pthread_atfork(pool_lock, pool_unlock, in_child); }
#endif

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
