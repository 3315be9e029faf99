"""The results of benchmarks: figures by flat keys, printed as they come and merged into one JSON file.

A key ends with its unit (`_ms`, `_us`, `_x`, `_share`, ...). Goals and wording live here, so that the output, the file
and the table of docs/BENCHMARKS.md agree.
"""

from __future__ import annotations

import json
import operator
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.call_names import CALLS
from loadtests.report import machine

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "bench.json"
META = "meta."  # keys that say where and on which machine an area was measured

_HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Known:
    """A figure with words. `goal` is like "< 8", or empty when the figure is only reported."""

    what: str
    unit: str = ""
    goal: str = ""

    def kept(self, value: float) -> bool:
        """True when a value keeps the goal, or there is none."""
        if not self.goal:
            return True
        sign, bound = self.goal.split()
        return _HOLDS[sign](value, float(bound))


# key | unit | goal | what
_WORDS = """
step.efficiency_32 | x | >= 0.95 | 32 long works through the scheduler, tokens/s against bare llama_decode
step.efficiency_32_scattered | x | >= 0.7 | 32 replies of 96 tokens on random ones of 200 trunks, copying included
step.efficiency_32_in_place | x | | the same as Gold, run where the trunks live, without a step budget
step.bare_32_tokens_per_s | tokens/s | | bare llama_decode and argmax, sequences 0 to 31
step.overhead_us | us | | a step of 32 beyond its decode: plan, pick, apply, hand over, wait for the lock
step.plan_us | us | | planning a step of 32
step.sample_us | us | | picking 32 tokens
step.apply_us | us | | taking a step's 32 tokens in
step.handover_us | us | | one call_soon_threadsafe, on the engine thread
step.deliver_us | us | | 32 tickets' chunks dealt out, on the event loop
step.budget_ms | ms | | a step's time budget while Gold waits or runs
step.over_budget_share | share | | steps with Gold that took longer than their budget, under prefill
gold.queue_p99_ms_under_prefill | ms | < 8 | 50 Gold/s beside 8 prefills of 1,000 tokens: submitted to taken
gold.token_p95_ms_under_prefill | ms | < 6 | the same: a token to the next of one work
gold.first_p95_ms_under_prefill | ms | | the same: submitted to the first token
gold.queue_p99_ms_no_budget | ms | | Gold's queue time without a step budget
gold.token_p95_ms_no_budget | ms | | Gold per token without a step budget
gold.prefill_tokens_per_s | tokens/s | | prefill beside Gold, with the budget
gold.prefill_given_up_share | share | | prefill throughput that the budget costs
flood.gold_p95_ms | ms | | 400 Gold/s beside Bronze on 16 lanes: due to answered
flood.gold_alone_p95_ms | ms | | 400 Gold/s alone: due to answered
flood.gold_x | x | <= 1.5 | Gold's p95 beside Bronze against Gold alone
flood.gold_token_p95_ms | ms | < 16 | Gold per token beside Bronze
flood.gold_added_budgets | budgets | <= 1 | the addition of Bronze to Gold's p95 per token
flood.gold_lost_share | share | | Gold beside Bronze that got no answer of its own
flood.gold_busy_share | share | | engine time that Gold alone takes
flood.bronze_tokens_per_s | tokens/s | | Bronze beside Gold
flood.bronze_alone_tokens_per_s | tokens/s | | Bronze alone
flood.bronze_share | x | >= 0.6 | Bronze beside Gold against Bronze alone in the time that Gold leaves
get.p99_ratio | x | <= 1.5 | Intents.Get against an empty method, p99, the engine saturated by 16 Bronze works
get.p99_saturated_x | x | <= 2 | Intents.Get with the engine saturated against idle, p99
get.empty_p99_saturated_x | x | | the empty method with the engine saturated against idle, p99 (the lock's cost)
get.p99_ratio_with_game | x | | Get against the empty method, p99, while a game sends 400 intents/s and talks too
get.p99_with_game_x | x | | Intents.Get with the engine saturated and the game, against idle, p99
get.empty_p99_with_game_x | x | | the empty method with the engine saturated and the game, against idle, p99
get.p50_us | us | | Intents.Get of one NPC, idle, p50
get.p50_us_saturated | us | | the same with the engine saturated
get.p50_us_with_game | us | | the same with the engine saturated and the game
get.p99_us | us | | Intents.Get of one NPC, idle, p99
get.p99_us_saturated | us | | the same with the engine saturated
get.p99_us_with_game | us | | the same with the engine saturated and the game
get.empty_p99_us | us | | an empty method on the same server, idle, p99
get.empty_p99_us_saturated | us | | the same with the engine saturated
get.empty_p99_us_with_game | us | | the same with the engine saturated and the game
cancel.reuse_p99_ms | ms | < 50 | client's cancel to the lane free again, beside other works, p99
cancel.reuse_p50_ms | ms | | the same, p50
cancel.reuse_idle_p99_ms | ms | | the same with nothing else running, p99
cancel.prefill_share | share | | cancels that came in the middle of a 1,000-token prefill
pauses.longest_call_ms | ms | < 5 | any call's longest stretch on the event loop, 10,000 NPCs: CPU time
pauses.gc_full_ms | ms | | a full garbage collection with 1,000 NPCs
pauses.gc_frozen_ms | ms | | the same after gc.freeze()
pauses.frame_1000_whole_ms | ms | | a frame of 1,000 observations taken in one piece: the event loop's longest stop
pauses.frame_1000_sliced_ms | ms | | the same in slices of 1 ms
pauses.switch_5ms_lag_p99_ms | ms | | event loop's lag p99, engine saturated, Python's switch interval of 5 ms
pauses.switch_half_ms_lag_p99_ms | ms | | the same with 0.5 ms
pauses.cores_shared_lag_p99_ms | ms | | event loop's lag p99, engine saturated, every thread on every core
pauses.cores_own_lag_p99_ms | ms | | the same with a core of the engine's own (serve.own_cores)
pauses.threads_1_lag_p99_ms | ms | | event loop's lag p99, engine saturated, one thread computing
pauses.threads_2_lag_p99_ms | ms | | the same with two, which is every core of this machine
pauses.threads_1_tokens_per_s | tokens/s | | tokens of 16 Bronze works meanwhile, one thread
pauses.threads_2_tokens_per_s | tokens/s | | the same, two threads
overload.first_p95_ms_worst | ms | < 250 | npcd at 120 % of what it carries: line due to first text p95, the worst round
overload.first_p95_ms | ms | | the same, median of the rounds
overload.first_p50_ms | ms | | the same, p50, median of the rounds
overload.gold_p95_ms_worst | ms | | the same: intent due to answered p95, worst of the rounds
overload.gold_p95_ms | ms | | the same, median of the rounds
overload.intents_per_s | intents/s | | npcd at its most here, with callers that never pause; the load is 1.2 times it
overload.done_share | share | | the same: of what was due, intents answered and turns spoken to their end
overload.refused | lines | | the same: lines that were refused and said again; their time counts from when they were due
overload.failed | | <= 0 | the same: intents and lines that failed
peer.llama_server.gold_x | x | >= 5 | llama-server's intent latency p95 over npcd's, at 60 % load
peer.llama_server.ttft_x | x | >= 3 | llama-server's first dialogue token p95 over npcd's, at 60 % load
peer.npcd.gold_p95_ms | ms | | npcd: intent latency p95 at 60 % load
peer.npcd.ttft_p95_ms | ms | | npcd: first dialogue token p95 at 60 % load
peer.llama_server.gold_p95_ms | ms | | llama-server: intent latency p95 at 60 % load
peer.llama_server.ttft_p95_ms | ms | | llama-server: first dialogue token p95 at 60 % load
peer.llama_server.done_x | x | | intents and turns finished at 60 % load, llama-server's over npcd's
peer.llama_server.gold_x_overload | x | | intent latency p95 over npcd's, at 120 % load
peer.llama_server.ttft_x_overload | x | | first dialogue token p95 over npcd's, at 120 % load
peer.npcd.gold_p95_ms_overload | ms | | npcd: intent latency p95 at 120 % load
peer.npcd.ttft_p95_ms_overload | ms | | npcd: first dialogue token p95 at 120 % load
peer.llama_server.gold_p95_ms_overload | ms | | llama-server: intent latency p95 at 120 % load
peer.llama_server.ttft_p95_ms_overload | ms | | llama-server: first dialogue token p95 at 120 % load
peer.npcd.intents_per_s | intents/s | | npcd: most intents/s with their share of dialogue
peer.llama_server.intents_per_s | intents/s | | llama-server: most intents/s with their share of dialogue
memory.hot_read_p99_us | us | < 50 | recall of a bond of 20 facts that is in process, p99
memory.hot_read_p50_us | us | | the same, p50
memory.at_hand_p99_us | us | | the same bond as intents' tails ask for it, p99
memory.recall_p95_ms | ms | < 2 | recall from Redis, 1,000 NPCs of 20 facts, beside the demo
memory.recall_p50_ms | ms | | the same, p50
memory.recall_p99_ms | ms | | the same, p99
memory.recall_late_share | share | | the same: not within the budget of 20 ms
memory.prefetch_p95_ms | ms | < 10 | the same: a player seen by an NPC to the bond in process
memory.prefetch_p50_ms | ms | | the same, p50
memory.postgres_fault_p95_ratio | x | <= 1.2 | PostgreSQL stopped, then killed: p95s over those without; +2 ms is 1
memory.postgres_fault_silver_p95_ms | ms | | the same: TalkRequest to first text, with the fault
memory.postgres_well_silver_p95_ms | ms | | the same without
memory.postgres_fault_gold_p95_ms | ms | | the same: intent due to its frame, with the fault
memory.postgres_well_gold_p95_ms | ms | | the same without
memory.postgres_fault_errors | | <= 0 | the same: turns and streams that failed
memory.loop_block_max_ms | ms | < 2 | the same: the event loop's longest stop by memory/, its threads included
memory.loop_step_max_ms | ms | | the same, on the event loop itself
memory.loop_share | share | | the same: event loop's time in code of memory/
memory.events_missing | events | <= 0 | the same: accepted and not in the archive afterwards
memory.events_twice | events | <= 0 | the same: in the archive more than once
memory.redis_fault_errors | | <= 0 | Redis stopped, then killed in conversations: turns and streams that failed
memory.redis_fault_told_share | share | >= 1 | the same: conversations begun meanwhile whose Timings say so
memory.redis_fault_unaccepted | turns | <= 0 | the same: turns that are not in the journal
memory.redis_fault_bonds_wrong | bonds | <= 0 | the same: bonds in Redis afterwards that are not what the journal says
memory.redis_fault_recall_max_ms | ms | | the same: the longest recall meanwhile
memory.kill9_kills | kills | | the serving process killed (SIGKILL) in conversations: so many times
memory.kill9_lost | | <= 0 | the same: turns, events, bonds and facts that were accepted and are not there
memory.kill9_asked | facts | | the same: facts told before a kill and asked for after it
memory.kill9_quoted_share | share | >= 0.8 | the same: quoted by the NPC
memory.kill9_back_s | s | | the same: killed to serving again
memory.no_store_quoted_share | share | <= 0.1 | the same facts asked of a daemon with a new data folder
memory.flat_mib | MiB | | 200 NPCs in conversation: growth of the serving process after 30 s of warm-up
memory.flat_second_half_mib | MiB | | the same: growth within the second half of that time
memory.flat_seconds | s | | the same: so long
memory.flat_resident_mib | MiB | | the same: its memory at the end
memory.flat_errors | | <= 0 | the same: turns that failed
spec.identical_share | share | >= 0.95 | greedy texts that drafts leave as they are, in full
spec.not_near_ties | texts | <= 0 | of the others, those that part where the likeliest token was well ahead
spec.gain_gold_x | x | | barks with n-gram drafts that may switch themselves off: tokens/s against without
spec.gain_silver_x | x | | the same, dialogue replies
spec.gain_gold_forced_x | x | | barks with n-gram drafts that may not be switched off
spec.gain_silver_forced_x | x | | the same, dialogue replies
spec.gain_draft_model_x | x | | replies with the draft model that ships, which may not be switched off
spec.break_even_1 | share | | acceptance from which one draft pays, one work in the step; above 1: never
spec.break_even_3 | share | | the same with three drafts
spec.off_cost_share | share | < 0.03 | tokens/s lost to drafts that are switched off, worse of 1 and 32 works
spec.break_even_large_1 | share | | a random model of 27 M parameters: acceptance from which one draft pays
spec.break_even_large_3 | share | | the same with three drafts
spec.gain_large_x | x | | its tokens/s with a draft model of one of its eight layers, against without
spec.identical_large_share | share | | its greedy texts that drafts leave as they are
spec.l4_gain_1_x | x | | simulated L4-class GPU, 3B: gain of 3 drafts at acceptance 0.7, one work
spec.l4_gain_8_x | x | | the same, 8 works
spec.l4_gain_32_x | x | | the same, 32 works
spec.l4_break_even | share | | the same: acceptance from which they pay, one work
spec.h200_gain_1_x | x | | simulated H200-class GPU, 8B: gain of 3 drafts at acceptance 0.7, one work
spec.h200_gain_8_x | x | | the same, 8 works
spec.h200_gain_32_x | x | | the same, 32 works
spec.h200_break_even | share | | the same: acceptance from which they pay, one work
adapter.activate_p95_ms | ms | < 5 | one token, right after the switch to an adapter that is in memory, p95
adapter.activate_p50_ms | ms | | the same, p50
adapter.swap_p95_ms | ms | | the same when it must be loaded and another one dropped for it, p95
adapter.swap_p50_ms | ms | | the same, p50
adapter.compose_7_ms | ms | | seven adapters made one, when they are first asked for together
adapter.stack_of_7_x | x | <= 1.3 | a step with seven of rank 8 composed, against one; worst of 1, 16, 32 sequences
adapter.step_x_1 | x | | a step with one adapter of rank 8 against the base model, one sequence
adapter.step_x_16 | x | | the same with 16
adapter.step_x_32 | x | | the same with 32
adapter.second_on_trunk_tokens | tokens | <= 0 | trunk tokens computed for a second activated adapter of an NPC
kv.ram_load_x | x | >= 15 | a trunk of 1,000 tokens ready to decode: computed over loaded from RAM, verified
kv.redis_load_x | x | >= 5 | the same from npcd's own Redis, signed
kv.ram_load_ms | ms | | the same from RAM: submitted to ready
kv.redis_load_ms | ms | | the same from Redis
kv.recompute_load_ms | ms | | the same computed
kv.ram_ttft_x | x | | the same with a tail of 16 tokens, to the first token: computed over loaded from RAM
kv.redis_ttft_x | x | | the same from Redis
kv.ram_ttft_ms | ms | | the same from RAM
kv.redis_ttft_ms | ms | | the same from Redis
kv.recompute_ttft_ms | ms | | the same computed
kv.move_out_stored_ms | ms | | moving such a trunk out of its sequence to RAM, sealed: the engine thread's time
kv.move_out_clean_ms | ms | | the same when its clean copy is there
kv.ladder_token_share | share | >= 0.9 | 1,000 NPCs, trunks of 400-1,000 tokens, Zipf visits: tokens not computed again
kv.ladder_loaded_share | share | | the same: loaded from RAM or Redis
kv.ladder_ttft_p50_ms | ms | | the same: submitted to the first token, eight players at once
kv.ladder_ttft_p95_ms | ms | | the same, p95
npc.idle_bytes | bytes | < 20480 | 10,000 registered NPCs that do nothing: memory for each, without KV
kv.leaks | replies | <= 0 | replies with another NPC's secret, trunks moving between sequences, RAM and Redis
kv.isolation_replies | replies | | the same: so many replies
kv.own_secret_share | share | >= 0.9 | the same: with the NPC's own secret
kv.control_leaks_found | leaks | >= 80 | the same with the checks off and 100 homes swapped: leaks that were found
kv.ttft_p95_peer_x | x | >= 3 | the ladder's visits, first-token p95, llama-server's over npcd's: the smaller of two
kv.ttft_p95_peer_60_x | x | | the same at 60 % of what npcd can do
kv.ttft_p95_peer_120_x | x | | the same at 120 %
kv.npcd_ttft_p95_60_ms | ms | | npcd: visit due to first token at 60 %, p95
kv.peer_ttft_p95_60_ms | ms | | llama-server: the same
kv.npcd_ttft_p95_120_ms | ms | | npcd: the same at 120 %
kv.peer_ttft_p95_120_ms | ms | | llama-server: the same
kv.npcd_visits_per_s | visits/s | | npcd: visits by 64 callers who never pause
kv.peer_visits_per_s | visits/s | | llama-server: the same
kv.ladder_visits_per_s | visits/s | | the same: replies of 12 tokens
real.start_s | s | <= 25 | a chat model, first start (new data folder): exec to SERVING, npcd's own stores included
real.start_again_s | s | <= 12 | the same, second start with the same data folder
real.shipped_start_s | s | | the model that ships, first start
real.shipped_start_again_s | s | | the same, second start with the same data folder
real.one_first_x | x | <= 1.5 | a chat model for all, 10 NPCs, a line every 6 s: first text p95 against alone
real.one_speech_tps | tokens/s | >= 8 | the same: tokens per second of a reply
real.one_speech_alone_tps | tokens/s | | the same without NPCs
real.one_model_age_p95_s | s | <= 6 | the same: age of the model's latest answer, p95 over all ten NPCs
real.one_errors | errors | <= 0 | the same: errors
real.hundred_first_x | x | <= 1.5 | the same with 100 NPCs: first text p95 against the same alone
real.hundred_model_intents_x | x | >= 0.5 | the same: the model's intents against what the bare engine could make
real.slowed_first_x | x | <= 1.5 | a daemon that runs a quarter of the time: first text p95, 1 is four times alone
real.slowed_carried_x | x | < 1 | the same: intents that are carried, against the whole machine
real.slowed_reversals | reversals | <= 1 | the same, and on one core: how often the pace turned round
real.slowed_errors | errors | <= 0 | the same: errors
real.overload_first_p95_ms_worst | ms | < 250 | the shipped model at 120 and 200 % load: first text p95, worst round
real.overload_first_p95_ms | ms | | the same, median of the rounds
real.overload_failed | | <= 0 | the same: intents and lines that failed
real.overload_120_superseded_share | share | | at 120 %: of the questions to the model, superseded by a newer one
real.overload_120_rule_share | share | | the same: of the intents, by the rule policy
real.overload_120_refused_lines | lines | | the same: lines refused and said again; time counts from the first
real.overload_200_superseded_share | share | | at 200 %: of the questions to the model, superseded by a newer one
real.overload_200_rule_share | share | | the same: of the intents, by the rule policy
real.overload_200_refused_lines | lines | | the same: lines refused and said again
real.recomputed_tokens_per_turn | tokens | <= 0 | 20 turns with a chat model: tokens that were computed a second time
real.rebuild_tokens | tokens | | the same: a turn's share of what rebuilds computed anew, in the background
real.guard_tokens | tokens | | the same: a turn's share of what cut replies made to compute anew
real.turn2_first_ms | ms | | the same: line sent to first text, turn 2, daemon otherwise idle
real.turn20_first_ms | ms | | the same at turn 20, the same line
real.turn20_first_x | x | <= 1.3 | the ratio of both
real.turn_settled_ms_max | ms | | the same: longest time from a reply's end until the daemon is idle (a rebuild)
real.kv_per_turn_bytes_stays | bytes | | KV that a turn adds, with its situation kept in the conversation
real.kv_per_turn_bytes_cut | bytes | | the same, with the situation cut off with the tail
real.computed_per_turn_tokens_stays | tokens | | tokens computed for a turn, reply included, with the situation kept
real.computed_per_turn_tokens_cut | tokens | | the same, with the situation cut off
real.shipped_recomputed_tokens_per_turn | tokens | | the model that ships: it keeps situations in the tail
real.shipped_rebuild_tokens | tokens | | the same
real.shipped_guard_tokens | tokens | | the same
real.shipped_turn2_first_ms | ms | | the same
real.shipped_turn20_first_ms | ms | | the same
real.shipped_turn20_first_x | x | <= 1.3 | the same
real.shipped_turn_settled_ms_max | ms | | the same
real.shipped_kv_per_turn_bytes_stays | bytes | | the same
real.shipped_kv_per_turn_bytes_cut | bytes | | the same
real.shipped_computed_per_turn_tokens_stays | tokens | | the same
real.shipped_computed_per_turn_tokens_cut | tokens | | the same
real.intent_before | share | | a chat model, 120 held-out situations: the designer's action, prompts as they were
real.intent_accuracy | share | | the same with npcd's chat layout, and examples that a designer wrote
real.intent_gain | share | >= 0.15 | the same: how much more
real.intent_accuracy_turned | share | | the same with the list of actions in reverse order
real.intent_rules | share | | the same situations by the rule policy
real.intent_majority | share | | the same: always the most frequent action
real.asked_do_without | share | | the same 120 situations, asked "What do you do?", no worked examples
real.asked_do_taught | share | | the same 120 situations, asked "What do you do?", examples that a designer wrote
real.asked_do_scene | share | | the same 120 situations, asked "What do you do?", the demo's own rules as examples
real.asked_now_without | share | | the same 120 situations, asked "What now?", no worked examples
real.asked_now_taught | share | | the same 120 situations, asked "What now?", examples that a designer wrote
real.asked_now_scene | share | | the same 120 situations, asked "What now?", the demo's own rules as examples
real.labels_share | share | <= 0.01 | 300 replies of a chat model: with a speaker's label or a line for the player
real.labels_raw_share | share | | the same before the guards
real.thoughts | replies | <= 0 | the same: with a thought
real.reply_words | words | >= 8 | the same: words of a reply, mean
real.replies_ended_share | share | | the same: ended by the model itself
real.named_share | share | | asked for its name: replies with the NPC's own name
real.named_told_share | share | | the same when the model was told the player's name
real.named_plain_share | share | | the same of a prompt that is a system message with the persona and nothing else
attention.cpu_cores | cores | < 0.5 | 10,000 registered, 1,000 observed at 10 Hz: CPU beside the engine's thread
attention.cpu_engine_cores | cores | | the same: of the engine's thread
attention.cpu_game_cores | cores | | the same: of the process that plays the game
attention.cpu_observations_per_s | 1/s | | the same: observations taken in
attention.observation_us | us | | 1,000 observed at 10 Hz without gRPC: CPU of the event loop per observation
attention.intent_us | us | | the same: all else that the loop does, per answer of the model
attention.latency_few_p95_ms | ms | | intent latency p95 with 1,000 registered, median of five
attention.latency_many_p95_ms | ms | | the same with 10,000, in turns
attention.idle_latency_x | x | <= 1.2 | the same, over that with 1,000; +2 ms is 1
attention.same_action_share | share | >= 0.98 | the village asked on change, and asked in every slot: the same action
attention.same_action_slots | slots | | the same: slots of an NPC that were compared
attention.calls_x | x | <= 0.5 | the same: model calls on change over those in every slot
attention.calls_fixed_per_s | 1/s | | the same: model calls in every slot
attention.prediction_age_x | x | <= 0.85 | the village with prediction over without: age p95 of active intents
attention.age_on_p95_ms | ms | | the same: with, median of three
attention.age_off_p95_ms | ms | | the same: without
attention.predicted_tokens_per_s | tokens/s | | the same: spent on predictions
attention.predicted_wasted_share | share | <= 0.5 | the same: of these, on states that did not come true
attention.predictions_hit_share | share | | the same: predictions that came true
attention.predicted_full_load_tokens | tokens | <= 0 | spent on predictions while more is due than the engine carries
attention.full_load_put_off | NPCs | | the same: due and waiting, median
attention.stall_policy_max_ms | ms | <= 50 | the engine stopped in a step: due to the policy's answer, the longest
attention.stall_policy_intents | | | the same: so many answers by the policy
attention.stall_unanswered | slots | <= 0 | the same: due slots without any answer
attention.stall_errors | | <= 0 | the same: errors that the game saw
attention.stall_frame_gap_max_ms | ms | | the same: the longest time without a frame of intents
attention.stall_back_max_ms | ms | | the same: the engine goes on to the model's first intent, the longest
"""


def _known() -> dict[str, Known]:
    found = {}
    for line in _WORDS.strip().splitlines():
        key, unit, goal, what = (part.strip() for part in line.split("|"))
        found[key] = Known(what, unit, goal)
    for name, what in CALLS.items():
        found[f"pauses.call_{name}_ms"] = Known(f"longest stretch, CPU: {what}", "ms")
        found[f"pauses.call_{name}_wall_ms"] = Known(f"longest stretch, wall: {what}", "ms")
    return found


KNOWN: Mapping[str, Known] = _known()


class Figures:
    """Takes figures: prints each with its unit at once and keeps it for the file."""

    def __init__(self, show: Callable[[str], None] = print) -> None:
        self.found: dict[str, float] = {}
        self._show = show

    def add(self, key: str, value: float, digits: int = 3) -> None:
        """Adds one figure. A known one is shown with its goal."""
        value = float(f"{value:.{digits + 3}g}")
        self.found[key] = value
        known = KNOWN.get(key, Known(""))
        verdict = f"   goal {known.goal}: {'kept' if known.kept(value) else 'MISSED'}" if known.goal else ""
        self._show(f"{key:<42} {value:>11.{digits}f} {known.unit:<9}{verdict}")

    def note(self, text: str) -> None:
        """Prints a line for people that is no figure."""
        self._show(text)

    @property
    def missed(self) -> list[str]:
        """The keys whose goals were missed."""
        return [key for key, value in self.found.items() if key in KNOWN and not KNOWN[key].kept(value)]

    def merge_into(self, path: Path, area: str, others: float | None = None) -> None:
        """Writes the new figures over those in the file; other keys stay. Notes where and when the area was measured,
        and the share of the machine that others took meanwhile.
        """
        known: dict[str, float | str] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        known |= self.found
        known |= {f"{META}{area}.{name}": text for name, text in _where().items()}
        known[f"{META}{area}.others"] = "unknown" if others is None else f"{others:.0%}"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", "utf-8")
        part.replace(path)


def _where() -> dict[str, str]:
    here = machine()
    return {
        "cpu": str(here["cpu"]),
        "cores": str(here["cores"]),
        "python": str(here["python"]),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _commit() -> str:
    """The checkout's commit, with a + after uncommitted changes; empty where there is no git."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + "+" if changed else head


def table(known: Mapping[str, float | str]) -> str:
    """The file's contents as markdown: for each area the machine, then its figures. Figures without words come last."""
    lines: list[str] = []
    for area in sorted({key.removeprefix(META).split(".")[0] for key in known if key.startswith(META)}):
        names = ("cpu", "cores", "python", "commit", "date", "others")
        where = {name: known.get(f"{META}{area}.{name}", "") for name in names}
        lines += [
            f"{area}: {where['cpu']}, {where['cores']} cores, Python {where['python']}, "
            f"commit {where['commit'] or 'unknown'}, {where['date']}; others took {where['others'] or 'unknown'} of it",
            "",
        ]
    lines += ["| figure | measured | goal | what |", "|---|---:|---|---|"]
    order = [*(key for key in KNOWN if key in known), *sorted(set(known) - set(KNOWN))]
    for key in order:
        value = known[key]
        if isinstance(value, str):
            continue
        words = KNOWN.get(key, Known(""))
        verdict = f"{words.goal} {'kept' if words.kept(value) else '**missed**'}" if words.goal else ""
        lines.append(f"| `{key}` | {shown(value)} {words.unit}".rstrip() + f" | {verdict} | {words.what} |")
    return "\n".join(lines)


def shown(value: float) -> str:
    """A number with three significant digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def read(path: Path) -> dict[str, float | str]:
    """The figures so far. Raises FileNotFoundError that says what to run."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; run a benchmark first: python -m loadtests.bench")
    return dict(json.loads(path.read_text("utf-8")))
