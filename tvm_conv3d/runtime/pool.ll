; One pool of threads a process for the parallel loops of compiled functions, in place of TVM's, which has a pool for each
; thread that ever calls. LLVM's text, as no C compiler may be needed where this package is used; see parallel.py.
;
; A loop is a function of a task's number. Its launcher works on it too, so that a loop ends even where no other thread
; can be had; whoever is free joins. Each thread begins with the task of its own number, which finds that thread's data in
; its caches, and goes on with what nobody has taken. Where OpenMP is loaded, its threads take the pool's place.

; what a task is told of its loop by TVM's convention: a handle for barriers, which our loops have none of, and its tasks
%environment = type { ptr, i32 }

; a loop: function, its data, environment, one flag a task, an error's code, places for workers, workers inside, next loop
%loop = type { ptr, ptr, %environment, ptr, i32, i32, i32, ptr }

; the process's settings, see threads.py: threads wanted by threads that do not say; GOMP_parallel and
; omp_get_thread_num, null where OpenMP's threads are not taken
%settings = type { i32, ptr, ptr }

@settings = internal global ptr null
@mutex = internal global [8 x i64] zeroinitializer, align 16
@arrived = internal global [8 x i64] zeroinitializer, align 16
@left = internal global [8 x i64] zeroinitializer, align 16
@loops = internal global ptr null, align 8
; loops that have come so far, and launchers that sleep until a worker leaves
@arrivals = internal global i32 0, align 4
@sleepers = internal global i32 0, align 4
@workers = internal global i32 0, align 4
; whether each thread can note two numbers: threads that it wants, and threads that OpenMP has had for it
@notes = internal global i1 false
@count_key = internal global i32 0, align 4
@openmp_key = internal global i32 0, align 4

declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(i64)
declare i32 @pthread_join(i64, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_trylock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_signal(ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @pthread_key_create(ptr, ptr)
declare ptr @pthread_getspecific(i32)
declare i32 @pthread_setspecific(i32, ptr)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i32 @sched_yield()
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

; Locks the mutex. It is held for some instructions only, but waking a thread that sleeps for it takes longer than a loop.
define internal void @lock() {
entry:
  br label %try

try:
  %tries = phi i32 [ 0, %entry ], [ %tries.next, %busy ]
  %code = call i32 @pthread_mutex_trylock(ptr @mutex)
  %free = icmp eq i32 %code, 0
  br i1 %free, label %done, label %busy

busy:
  %tries.next = add i32 %tries, 1
  %patient = icmp ult i32 %tries.next, 1000
  br i1 %patient, label %try, label %sleep

sleep:
  call i32 @pthread_mutex_lock(ptr @mutex)
  br label %done

done:
  ret void
}

; Runs tasks of a loop until none is left, that of number %first before all others.
define internal void @work_on(ptr %loop, i32 %first) {
entry:
  %function = load ptr, ptr %loop
  %data.at = getelementptr %loop, ptr %loop, i32 0, i32 1
  %data = load ptr, ptr %data.at
  %environment = getelementptr %loop, ptr %loop, i32 0, i32 2
  %tasks.at = getelementptr %loop, ptr %loop, i32 0, i32 2, i32 1
  %tasks = load i32, ptr %tasks.at
  %flags.at = getelementptr %loop, ptr %loop, i32 0, i32 3
  %flags = load ptr, ptr %flags.at
  br label %next

next:
  %i = phi i32 [ 0, %entry ], [ %i.next, %again ]
  %more = icmp ult i32 %i, %tasks
  br i1 %more, label %claim, label %done

claim:
  %shifted = add i32 %first, %i
  %task = urem i32 %shifted, %tasks
  %flag = getelementptr i8, ptr %flags, i32 %task
  %taken = atomicrmw xchg ptr %flag, i8 1 acq_rel
  %free = icmp eq i8 %taken, 0
  br i1 %free, label %run, label %again

run:
  %code = call i32 %function(i32 %task, ptr %environment, ptr %data)
  %failed = icmp ne i32 %code, 0
  br i1 %failed, label %fail, label %again

fail:
  %code.at = getelementptr %loop, ptr %loop, i32 0, i32 4
  store atomic i32 %code, ptr %code.at monotonic, align 4
  br label %again

again:
  %i.next = add i32 %i, 1
  br label %next

done:
  ret void
}

; The first loop that has a place for a worker, null without one; the mutex is held.
define internal ptr @joinable() {
entry:
  %head = load ptr, ptr @loops
  br label %look

look:
  %loop = phi ptr [ %head, %entry ], [ %next, %full ]
  %none = icmp eq ptr %loop, null
  br i1 %none, label %found, label %ask

ask:
  %places.at = getelementptr %loop, ptr %loop, i32 0, i32 5
  %places = load atomic i32, ptr %places.at monotonic, align 4
  %room = icmp sgt i32 %places, 0
  br i1 %room, label %found, label %full

full:
  %next.at = getelementptr %loop, ptr %loop, i32 0, i32 7
  %next = load ptr, ptr %next.at
  br label %look

found:
  ret ptr %loop
}

; A worker's life: joins loops as they come, for as long as the process lives.
define internal ptr @worker(ptr %number) {
entry:
  %wide = ptrtoint ptr %number to i64
  %first = trunc i64 %wide to i32
  call void @lock()
  br label %seek

seek:
  ; the mutex is held; having waited in vain, a worker sleeps
  %in.vain = phi i1 [ false, %entry ], [ false, %sleep ], [ %still, %spun ], [ false, %left ]
  %loop = call ptr @joinable()
  %none = icmp eq ptr %loop, null
  br i1 %none, label %wait, label %join

wait:
  br i1 %in.vain, label %sleep, label %spin

sleep:
  call i32 @pthread_cond_wait(ptr @arrived, ptr @mutex)
  br label %seek

spin:
  ; a network's next layer comes soon: waking a thread that sleeps takes longer than waiting for it
  %known = load atomic i32, ptr @arrivals monotonic, align 4
  call i32 @pthread_mutex_unlock(ptr @mutex)
  br label %spinning

spinning:
  %spins = phi i32 [ 0, %spin ], [ %spins.next, %yield ]
  %arrivals = load atomic i32, ptr @arrivals monotonic, align 4
  %still = icmp eq i32 %arrivals, %known
  %patient = icmp ult i32 %spins, 4000
  %go.on = and i1 %still, %patient
  br i1 %go.on, label %yield, label %spun

yield:
  call i32 @sched_yield()
  %spins.next = add i32 %spins, 1
  br label %spinning

spun:
  call void @lock()
  br label %seek

join:
  %places.at = getelementptr %loop, ptr %loop, i32 0, i32 5
  %places = load atomic i32, ptr %places.at monotonic, align 4
  %fewer = sub i32 %places, 1
  store atomic i32 %fewer, ptr %places.at monotonic, align 4
  %inside.at = getelementptr %loop, ptr %loop, i32 0, i32 6
  %entered = atomicrmw add ptr %inside.at, i32 1 monotonic
  call i32 @pthread_mutex_unlock(ptr @mutex)
  call void @work_on(ptr %loop, i32 %first)
  ; nothing is left to join, and from the next line but one on the loop may be gone
  store atomic i32 0, ptr %places.at monotonic, align 4
  %before = atomicrmw sub ptr %inside.at, i32 1 seq_cst
  %sleepers = load atomic i32, ptr @sleepers seq_cst, align 4
  %awake = icmp eq i32 %sleepers, 0
  br i1 %awake, label %leave, label %tell

tell:
  call void @lock()
  call i32 @pthread_cond_broadcast(ptr @left)
  br label %left

leave:
  call void @lock()
  br label %left

left:
  br label %seek
}

; Starts workers until there are %wanted or the system has no thread left; the mutex is held.
define internal void @grow(i32 %wanted) {
entry:
  %mask = alloca [16 x i64], align 16
  %old = alloca [16 x i64], align 16
  %thread = alloca i64
  %now = load i32, ptr @workers
  %enough = icmp sge i32 %now, %wanted
  br i1 %enough, label %done, label %start

start:
  ; signals are for the threads of the program: a blocked call of theirs must see them (2 sets the mask); but for those
  ; of faults: ILL, TRAP, ABRT, BUS, FPE, SEGV
  call void @llvm.memset.p0.i64(ptr %mask, i8 -1, i64 128, i1 false)
  store i64 -1273, ptr %mask
  call i32 @pthread_sigmask(i32 2, ptr %mask, ptr %old)
  br label %more

more:
  %count = phi i32 [ %now, %start ], [ %number, %made ]
  %number = add i32 %count, 1
  %wide = zext i32 %number to i64
  %argument = inttoptr i64 %wide to ptr
  %code = call i32 @pthread_create(ptr %thread, ptr null, ptr @worker, ptr %argument)
  %well = icmp eq i32 %code, 0
  br i1 %well, label %made, label %restore

made:
  %id = load i64, ptr %thread
  call i32 @pthread_detach(i64 %id)
  store i32 %number, ptr @workers
  %all = icmp sge i32 %number, %wanted
  br i1 %all, label %restore, label %more

restore:
  call i32 @pthread_sigmask(i32 2, ptr %old, ptr null)
  br label %done

done:
  ret void
}

; Runs a loop on the pool: returns when all its tasks have ended.
define internal void @run_on_pool(ptr %loop) {
entry:
  %places.at = getelementptr %loop, ptr %loop, i32 0, i32 5
  %places = load i32, ptr %places.at
  %next.at = getelementptr %loop, ptr %loop, i32 0, i32 7
  call void @lock()
  call void @grow(i32 %places)
  %head = load ptr, ptr @loops
  store ptr %head, ptr %next.at
  store ptr %loop, ptr @loops
  %arrival = atomicrmw add ptr @arrivals, i32 1 monotonic
  call i32 @pthread_mutex_unlock(ptr @mutex)
  br label %wake

wake:
  %woken = phi i32 [ 0, %entry ], [ %woken.next, %wake ]
  call i32 @pthread_cond_signal(ptr @arrived)
  %woken.next = add i32 %woken, 1
  %more = icmp slt i32 %woken.next, %places
  br i1 %more, label %wake, label %work

work:
  call void @work_on(ptr %loop, i32 0)
  call void @lock()
  br label %find

find:
  %link = phi ptr [ @loops, %work ], [ %link.next, %on ]
  %at = load ptr, ptr %link
  %mine = icmp eq ptr %at, %loop
  br i1 %mine, label %unlink, label %on

on:
  %link.next = getelementptr %loop, ptr %at, i32 0, i32 7
  br label %find

unlink:
  %after = load ptr, ptr %next.at
  store ptr %after, ptr %link
  call i32 @pthread_mutex_unlock(ptr @mutex)
  %inside.at = getelementptr %loop, ptr %loop, i32 0, i32 6
  br label %spinning

spinning:
  %spins = phi i32 [ 0, %unlink ], [ %spins.next, %yield ]
  %inside = load atomic i32, ptr %inside.at acquire, align 4
  %empty = icmp eq i32 %inside, 0
  br i1 %empty, label %done, label %busy

busy:
  %patient = icmp ult i32 %spins, 1000
  br i1 %patient, label %yield, label %sleep

yield:
  call i32 @sched_yield()
  %spins.next = add i32 %spins, 1
  br label %spinning

sleep:
  call void @lock()
  %more.sleepers = atomicrmw add ptr @sleepers, i32 1 seq_cst
  br label %sleeping

sleeping:
  %rest = load atomic i32, ptr %inside.at seq_cst, align 4
  %over = icmp eq i32 %rest, 0
  br i1 %over, label %wake.up, label %snooze

snooze:
  call i32 @pthread_cond_wait(ptr @left, ptr @mutex)
  br label %sleeping

wake.up:
  %fewer.sleepers = atomicrmw sub ptr @sleepers, i32 1 seq_cst
  call i32 @pthread_mutex_unlock(ptr @mutex)
  br label %done

done:
  ret void
}

; A thread of OpenMP's team.
define internal void @member(ptr %loop) {
  %settings = load ptr, ptr @settings
  %number.at = getelementptr %settings, ptr %settings, i32 0, i32 2
  %number = load ptr, ptr %number.at
  %first = call i32 %number()
  call void @work_on(ptr %loop, i32 %first)
  ret void
}

; Waits until a mutex is free once.
define internal ptr @wait_for(ptr %mutex) {
  call i32 @pthread_mutex_lock(ptr %mutex)
  call i32 @pthread_mutex_unlock(ptr %mutex)
  ret ptr null
}

; Whether the system has %count threads more. OpenMP ends the process where it has not.
define internal i1 @system_has(i32 %count) {
entry:
  %gate = alloca [8 x i64], align 16
  call void @llvm.memset.p0.i64(ptr %gate, i8 0, i64 64, i1 false)
  %threads = alloca i64, i32 %count
  call i32 @pthread_mutex_lock(ptr %gate)
  br label %more

more:
  %made = phi i32 [ 0, %entry ], [ %made.next, %well ]
  %all = icmp sge i32 %made, %count
  br i1 %all, label %open, label %make

make:
  %thread = getelementptr i64, ptr %threads, i32 %made
  %code = call i32 @pthread_create(ptr %thread, ptr null, ptr @wait_for, ptr %gate)
  %made.next = add i32 %made, 1
  %good = icmp eq i32 %code, 0
  br i1 %good, label %well, label %open

well:
  br label %more

open:
  call i32 @pthread_mutex_unlock(ptr %gate)
  br label %join

join:
  %joined = phi i32 [ 0, %open ], [ %joined.next, %one ]
  %over = icmp sge i32 %joined, %made
  br i1 %over, label %done, label %one

one:
  %id.at = getelementptr i64, ptr %threads, i32 %joined
  %id = load i64, ptr %id.at
  call i32 @pthread_join(i64 %id, ptr null)
  %joined.next = add i32 %joined, 1
  br label %join

done:
  ret i1 %all
}

; The number that this thread has noted under a key, 0 for none.
define internal i32 @noted(i32 %key) {
  %value = call ptr @pthread_getspecific(i32 %key)
  %wide = ptrtoint ptr %value to i64
  %number = trunc i64 %wide to i32
  ret i32 %number
}

define internal void @note(i32 %key, i32 %number) {
  %wide = zext i32 %number to i64
  %value = inttoptr i64 %wide to ptr
  call i32 @pthread_setspecific(i32 %key, ptr %value)
  ret void
}

; Whether OpenMP may run %tasks threads for this one. The system is asked where they are more than at the last loop: OpenMP
; keeps that loop's threads, and no more.
define internal i1 @openmp_may(i32 %tasks) {
entry:
  %notes = load i1, ptr @notes
  br i1 %notes, label %look, label %no

look:
  %key = load i32, ptr @openmp_key
  %had = call i32 @noted(i32 %key)
  %same = icmp eq i32 %had, %tasks
  br i1 %same, label %yes, label %compare

compare:
  %enough = icmp sgt i32 %had, %tasks
  br i1 %enough, label %keep, label %ask

ask:
  %others = sub i32 %tasks, 1
  %there = call i1 @system_has(i32 %others)
  br i1 %there, label %keep, label %no

keep:
  call void @note(i32 %key, i32 %tasks)
  br label %yes

yes:
  ret i1 true

no:
  ret i1 false
}

; Threads that a loop of this thread takes.
define internal i32 @wanted() {
entry:
  %notes = load i1, ptr @notes
  br i1 %notes, label %own, label %common

own:
  %key = load i32, ptr @count_key
  %count = call i32 @noted(i32 %key)
  %said = icmp sgt i32 %count, 0
  br i1 %said, label %done, label %common

common:
  %settings = load ptr, ptr @settings
  %other = load atomic i32, ptr %settings monotonic, align 4
  br label %done

done:
  %wanted = phi i32 [ %count, %own ], [ %other, %common ]
  ret i32 %wanted
}

; What compiled functions call for a parallel loop, as TVMBackendParallelLaunch: %asked tasks, or 0 for a task a thread.
define internal i32 @launch(ptr %function, ptr %data, i32 %asked) {
entry:
  %loop = alloca %loop, align 16
  %settings = load ptr, ptr @settings
  %wanted = call i32 @wanted()
  %given = icmp sgt i32 %asked, 0
  %some = select i1 %given, i32 %asked, i32 %wanted
  %parallel = icmp sgt i32 %some, 1
  %tasks = select i1 %parallel, i32 %some, i32 1
  %flags = alloca i8, i32 %tasks
  %size = zext i32 %tasks to i64
  call void @llvm.memset.p0.i64(ptr %flags, i8 0, i64 %size, i1 false)
  %workers = sub i32 %tasks, 1
  %function.at = getelementptr %loop, ptr %loop, i32 0, i32 0
  store ptr %function, ptr %function.at
  %data.at = getelementptr %loop, ptr %loop, i32 0, i32 1
  store ptr %data, ptr %data.at
  %handle.at = getelementptr %loop, ptr %loop, i32 0, i32 2, i32 0
  store ptr null, ptr %handle.at
  %tasks.at = getelementptr %loop, ptr %loop, i32 0, i32 2, i32 1
  store i32 %tasks, ptr %tasks.at
  %flags.at = getelementptr %loop, ptr %loop, i32 0, i32 3
  store ptr %flags, ptr %flags.at
  %code.at = getelementptr %loop, ptr %loop, i32 0, i32 4
  store i32 0, ptr %code.at
  %places.at = getelementptr %loop, ptr %loop, i32 0, i32 5
  store i32 %workers, ptr %places.at
  %inside.at = getelementptr %loop, ptr %loop, i32 0, i32 6
  store i32 0, ptr %inside.at
  br i1 %parallel, label %choose, label %alone

alone:
  call void @work_on(ptr %loop, i32 0)
  br label %done

choose:
  %openmp.at = getelementptr %settings, ptr %settings, i32 0, i32 1
  %openmp = load atomic ptr, ptr %openmp.at monotonic, align 8
  %absent = icmp eq ptr %openmp, null
  br i1 %absent, label %pool, label %ask

ask:
  %may = call i1 @openmp_may(i32 %tasks)
  br i1 %may, label %team, label %pool

team:
  call void %openmp(ptr @member, ptr %loop, i32 %tasks, i32 0)
  br label %done

pool:
  call void @run_on_pool(ptr %loop)
  br label %done

done:
  %code = load i32, ptr %code.at
  ret i32 %code
}

; The functions that Python calls, by the convention of TVM's FFI: arguments and the result are a type's number (1 is an
; integer's) and 8 bytes from the eighth on.

; start(address of the settings) -> address of `launch`
define i32 @__tvm_ffi_start(ptr %self, ptr %arguments, i32 %count, ptr %result) {
  %value = getelementptr i8, ptr %arguments, i64 8
  %address = load i64, ptr %value
  %settings = inttoptr i64 %address to ptr
  store ptr %settings, ptr @settings
  %first = call i32 @pthread_key_create(ptr @openmp_key, ptr null)
  %second = call i32 @pthread_key_create(ptr @count_key, ptr null)
  %failures = or i32 %first, %second
  %notes = icmp eq i32 %failures, 0
  store i1 %notes, ptr @notes
  %launch = ptrtoint ptr @launch to i64
  store i32 1, ptr %result
  %to = getelementptr i8, ptr %result, i64 8
  store i64 %launch, ptr %to
  ret i32 0
}

; set_count(threads that loops of this thread take from now on)
define i32 @__tvm_ffi_set_count(ptr %self, ptr %arguments, i32 %count, ptr %result) {
entry:
  %notes = load i1, ptr @notes
  br i1 %notes, label %say, label %done

say:
  %value = getelementptr i8, ptr %arguments, i64 8
  %wanted = load i32, ptr %value
  %key = load i32, ptr @count_key
  call void @note(i32 %key, i32 %wanted)
  br label %done

done:
  ret i32 0
}

; forked(): begins anew in a forked child, which has none of its parent's other threads
define i32 @__tvm_ffi_forked(ptr %self, ptr %arguments, i32 %count, ptr %result) {
  call void @llvm.memset.p0.i64(ptr @mutex, i8 0, i64 64, i1 false)
  call void @llvm.memset.p0.i64(ptr @arrived, i8 0, i64 64, i1 false)
  call void @llvm.memset.p0.i64(ptr @left, i8 0, i64 64, i1 false)
  store ptr null, ptr @loops
  store i32 0, ptr @workers
  store i32 0, ptr @sleepers
  ret i32 0
}

; workers() -> threads of the pool
define i32 @__tvm_ffi_workers(ptr %self, ptr %arguments, i32 %count, ptr %result) {
  %workers = load i32, ptr @workers
  %wide = zext i32 %workers to i64
  store i32 1, ptr %result
  %to = getelementptr i8, ptr %result, i64 8
  store i64 %wide, ptr %to
  ret i32 0
}
