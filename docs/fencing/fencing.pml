/*
 * Fencing in Gugus: never two copies of a guest.
 *
 * A host that fails in every way, an heir, two managers, one guest under HA, on discrete time. Names are those of the code:
 * manager/ha/node_machine.py (states of a node, its incarnation, its last renewal), manager/ha/manager_lease.py (acting),
 * manager/ha/fence_plan.py (rounds of fence devices), agent/fencing/lease.py (the lease as its holder counts it), agent/watchdog.
 * README.md beside this file says what is left out, and what -D NO_MARGIN, NO_TOKENS, BLIND_WATCHDOG, NO_WAIT, NO_MANAGER_WAIT,
 * TIMEOUT_IS_OFF, NOT_READ_BACK and EARLIER_ROUND leave out: each must find a second copy.
 */

/* Ticks. The host's clock may be slow: while it counts a lease and the kill budget after it, it misses SLOW ticks. */
#define LEASE       2
#define KILL_BUDGET 1
#define SLOW        1
#ifdef NO_MARGIN
#define MARGIN 0
#else
#define MARGIN (SLOW + 1)
#endif
#define SAFE_AFTER    (LEASE + KILL_BUDGET + MARGIN)      /* common/leases.py: safe_after_ns */
#define MANAGER_LEASE 1
#ifdef NO_MANAGER_WAIT
#define WAITED_OUT 0
#else
#define WAITED_OUT (MANAGER_LEASE + 1)                    /* manager_lease.py: waited_out_ns */
#endif

/* Bounds of the search: what may happen how often. */
#define MOST_BOOTS       1
#define MOST_LAPSES      1
#define MOST_EPOCHS      3
#define MOST_GENERATIONS 3
#ifndef MOST_LEADERS
#define MOST_LEADERS     1
#endif

#define other(m) (1 - (m))

mtype = { ONLINE, SUSPECT, FENCING, FENCED };
mtype = { nothing, asked, renewed, unrenewed, refused };

/* The replicated state. A transaction is one step of the manager that holds the lease and leads Raft: its compares see the newest. */
mtype node_state = ONLINE;
bit stored_boot, stored_lapse;  /* the incarnation that last got the lease */
bool fired;                     /* its fence devices are to be used */
bool moved;                     /* the guest was given to the heir */
bool recovering;                /* recovery has taken the guest of the fenced node in hand */
byte generation = 1;
byte epoch = 1;
bit holder;                     /* of the managers' lease */
bit leader;                     /* of Raft */
byte leaders;

/* The managers. What a reign remembers dies with it, so the holder's memory is all there is. */
byte acting_left[2];            /* each one's own count: it acts while this is above 0 */
byte lease_unchanged;           /* for how long the other one saw the managers' lease unchanged */
bool predecessor_online;        /* the replica of the one before shows the node ONLINE still */
byte since_renewal;             /* ticks since the node's last renewal by this reign, or since its takeover */
bool off; bit off_boot, off_lapse;      /* the word of a device, and the incarnation that its round was for */
bool round;                     /* a device is at work */

/* The host. Epoch, generation and number of the last lapse are on its disk. */
bool power = true, hung, running;
bit boot, lapses;
bool held;                      /* a lease was held in this boot, and its end is not reported yet */
byte lease_left, over, slow;    /* the holder's count; ticks since the end; ticks that its clock may miss still */
byte epoch_seen, generation_seen;

bool heir_runs;                 /* the guest runs on the heir, which never fails */

/* Messages with the host: delayed at will, lost at will. A beat and its answer are one exchange. */
mtype exchange = nothing;
bit told_boot, told_lapse; bool told_running; byte told_epoch; byte age;     /* age: since the beat was sent */
bool start; byte start_generation, start_epoch;

/* The host's fence device. */
bool at_work, obeyed, heeded; bit round_boot, round_lapse;      /* heeded: whoever asked acts still */

bool by_time, by_device, by_agent, by_boot;    /* how the host was ever proven dead */

#define acts(m)        (acting_left[m] > 0 && holder == (m) && leader == (m))
#define same(b, l)     (stored_boot == (b) && stored_lapse == (l))
#define is_told        same(told_boot, told_lapse)
#define current        (told_boot == stored_boot || told_epoch >= epoch)
#define up             (power && !hung)
#define expired        (running && lease_left == 0 && over >= KILL_BUDGET)

#ifdef BLIND_WATCHDOG
#define watched        (!hung)
#else
#define watched        true
#endif
#ifdef NO_TOKENS
#define granted        true
#else
#define granted        (start_epoch >= epoch_seen && start_generation >= generation_seen)
#endif
#ifdef EARLIER_ROUND
#define of_this_round  true
#else
#define of_this_round  same(off_boot, off_lapse)
#endif
#ifdef NOT_READ_BACK
#define read_off       true
#else
#define read_off       (!power)
#endif
#ifdef NO_WAIT
#define AT_TAKEOVER    SAFE_AFTER
#else
#define AT_TAKEOVER    0
#endif

/* What is over leaves no trace in the state: that keeps the search small. */
inline answered() { exchange = nothing; told_boot = 0; told_lapse = 0; told_running = false; told_epoch = 0; age = 0 }
inline started()  { start = false; start_generation = 0; start_epoch = 0 }
inline ended()    { at_work = false; obeyed = false; heeded = false; round_boot = 0; round_lapse = 0; round = false }
inline cut()      { power = false; hung = false; running = false; held = false; lease_left = 0; over = 0; slow = 0 }
inline proven()   { if :: heeded -> off = true; off_boot = round_boot; off_lapse = round_lapse :: else fi }
inline max(a, b)  { if :: b > a -> a = b :: else fi }

#define no_two_copies  assert(!(running && heir_runs))

/* agent/heartbeat.py, agent/fencing/lease.py and guard.py */
active proctype agent() {
    do
    :: d_step { up && exchange == nothing && !(held && lease_left == 0) ->      /* LeaseKeeper.beat_sent */
        exchange = asked; told_boot = boot; told_lapse = lapses; told_running = running; told_epoch = epoch_seen; age = 0 }
    :: d_step { up && (exchange == renewed || exchange == unrenewed || exchange == refused) ->     /* LeaseKeeper.beat_answered */
        if
        :: told_boot == boot && told_lapse == lapses && told_epoch >= epoch_seen ->
            epoch_seen = told_epoch;
            if
            :: exchange == renewed && age < LEASE -> lease_left = LEASE - age; held = true; over = 0; slow = SLOW
            :: exchange == refused -> lease_left = 0
            :: else
            fi
        :: else
        fi;
        answered() }
    :: d_step { up && held && lease_left == 0 && lapses < MOST_LAPSES ->        /* LAPSING: all HA guests die; LAPSED */
        running = false; held = false; over = 0; slow = 0; lapses++ }
    :: d_step { up && start ->                                                  /* a grant: guest, generation, epoch */
        if
        :: granted && lease_left > 0 ->
            max(epoch_seen, start_epoch); max(generation_seen, start_generation);
            running = true; no_two_copies
        :: else
        fi;
        started() }
    od
}

/* agent/watchdog: the device fires no later than lease end plus kill budget, whatever hangs. */
active proctype watchdog() {
    do
    :: d_step { power && expired && watched -> cut() }
    od
}

/* manager/acting.py: the managers' lease. */
proctype acting(bit m) {
    do
    :: d_step { holder == m && leader == m && (acting_left[m] < MANAGER_LEASE || lease_unchanged > 0) ->       /* Renew */
        acting_left[m] = MANAGER_LEASE; lease_unchanged = 0 }
    :: d_step { leader == m && holder != m && lease_unchanged >= WAITED_OUT && epoch < MOST_EPOCHS ->       /* Acquire */
        predecessor_online = (node_state == ONLINE);
        holder = m; epoch++; acting_left[m] = MANAGER_LEASE; lease_unchanged = 0;
        since_renewal = AT_TAKEOVER; off = false; off_boot = 0; off_lapse = 0; round = false; heeded = false }
    od
}

/* manager/controllers/nodes.py on node_machine.decide, placing.py on recovery.recover, fence_rounds.py on fence_plan.Round */
proctype manager(bit m) {
    do
    :: d_step { acts(m) && exchange == asked ->                                 /* a beat is heard */
        if
        :: node_state == ONLINE && is_told -> exchange = renewed; since_renewal = 0
        :: node_state == SUSPECT && is_told && since_renewal < LEASE -> exchange = unrenewed; node_state = ONLINE
        :: node_state != FENCED && !is_told && current ->                       /* _proof: another boot, or a lapse */
            exchange = refused; node_state = FENCED;
            if :: told_boot == stored_boot -> by_agent = true :: else -> by_boot = true fi
        :: node_state == FENCED && !is_told && current && !told_running && !round && (moved || recovering) && epoch < MOST_EPOCHS ->
            exchange = unrenewed; node_state = ONLINE; stored_boot = told_boot; stored_lapse = told_lapse;      /* _back */
            fired = false; epoch++          /* a word of before stays in memory: it must not count for this incarnation */
        :: else -> if :: node_state == FENCING || node_state == FENCED -> exchange = refused :: else -> exchange = unrenewed fi
        fi;
        told_epoch = epoch }
    :: d_step { acting_left[m] > 0 && holder != m && predecessor_online && exchange == asked && is_told ->
        exchange = renewed; told_epoch = epoch - 1 }                            /* it believes in its lease, and its replica is old */
    :: d_step { acts(m) && node_state == ONLINE -> node_state = SUSPECT }       /* beats are missing: at any time */
    :: d_step { acts(m) && node_state == SUSPECT && since_renewal >= LEASE + SLOW -> node_state = FENCING }
    :: d_step { acts(m) && (node_state == SUSPECT || node_state == ONLINE) && !fired ->     /* decide_fire, or somebody asks */
        node_state = FENCING; fired = true }
    :: d_step { acts(m) && node_state == FENCING && since_renewal >= SAFE_AFTER -> node_state = FENCED; by_time = true }
    :: d_step { acts(m) && (node_state == FENCING || node_state == SUSPECT) && off && of_this_round ->      /* _seen_off */
        node_state = FENCED; by_device = true }
    :: d_step { acts(m) && node_state == FENCING && fired && !round && !(off && same(off_boot, off_lapse)) && !at_work ->  /* a round begins */
        round = true; at_work = true; heeded = true; round_boot = stored_boot; round_lapse = stored_lapse }
    :: d_step { acts(m) && node_state == FENCED && !moved && !recovering -> recovering = true }
    :: d_step { acts(m) && recovering && generation < MOST_GENERATIONS ->       /* recovery.Move: to the heir */
        moved = true; recovering = false; generation++ }
    :: d_step { acts(m) && recovering && node_state == ONLINE && generation < MOST_GENERATIONS ->   /* or to the host that came back */
        recovering = false; generation++ }
    :: d_step { acts(m) && !moved && !recovering && node_state == ONLINE && !start ->
        start = true; start_generation = generation; start_epoch = epoch }
    :: d_step { acts(m) && moved && !heir_runs -> heir_runs = true; no_two_copies }
    od
}

/* manager/fencing: `off`, then `status`. The device hangs, fails, does nothing, or works, and answers whenever it likes. */
proctype fence_device() {
    do
    :: d_step { at_work && !obeyed -> cut(); obeyed = true }                    /* off: done */
    :: d_step { at_work && !obeyed -> obeyed = true }                           /* off: says so, and did nothing */
    :: d_step { at_work && obeyed && read_off -> proven(); ended() }            /* status: off */
    :: d_step { at_work ->                                                      /* a time-out, an error, or status: on */
#ifdef TIMEOUT_IS_OFF
        proven();
#endif
        ended() }
    od
}

proctype faults() {
    do
    :: d_step { power -> cut() }
    :: d_step { !power && boot < MOST_BOOTS -> power = true; boot++ }
    :: d_step { up -> hung = true }
    :: d_step { power && hung -> hung = false }
    :: d_step { exchange != nothing -> answered() }
    :: d_step { start -> started() }
    :: d_step { leaders < MOST_LEADERS -> leader = other(leader); leaders++ }
    od
}

/* Time passes unless something is overdue: a guest whose lease ended is dead within the budget, by the agent's hand or the watchdog's. */
proctype clock() {
    do
    :: d_step { !(expired && watched) ->
        if
        :: slow > 0 && held -> slow--                                           /* the slowest that the bound allows */
        :: else ->
            if
            :: lease_left > 0 -> lease_left--
            :: lease_left == 0 && held && over < KILL_BUDGET -> over++
            :: else
            fi
        fi;
        if :: exchange != nothing && age < LEASE -> age++ :: else fi;
        if :: since_renewal < SAFE_AFTER -> since_renewal++ :: else fi;
        if :: acting_left[0] > 0 -> acting_left[0]-- :: else fi;
        if :: acting_left[1] > 0 -> acting_left[1]-- :: else fi;
        if :: lease_unchanged < MANAGER_LEASE + 1 -> lease_unchanged++ :: else fi }
    od
}

init {
    acting_left[0] = MANAGER_LEASE;
    atomic {
        run acting(0); run acting(1); run manager(0); run manager(1); run fence_device(); run faults(); run clock()
    }
}

/* Not vacuous: each of these claims must be refuted, by a run in which the host is proven dead that way and the heir takes over. */
#ifdef SHOW_BY_TIME
ltl shown { [] !(by_time && !by_device && !by_agent && !by_boot && heir_runs) }
#endif
#ifdef SHOW_BY_DEVICE
ltl shown { [] !(by_device && !by_time && !by_agent && !by_boot && heir_runs) }
#endif
#ifdef SHOW_BY_AGENT
ltl shown { [] !(by_agent && !by_time && !by_device && !by_boot && heir_runs) }
#endif
#ifdef SHOW_BY_BOOT
ltl shown { [] !(by_boot && !by_time && !by_device && !by_agent && heir_runs) }
#endif
