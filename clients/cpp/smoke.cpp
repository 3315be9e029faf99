// A game server in one file: defines a world, registers NPCs, streams what they see, reads their intents, and talks.
//
//     smoke unix:///path | host:port
//
// Prints one line for each step and ends with status 0. The first error ends it with status 1.
// It is the whole contract that a C++ game needs, on the stubs that `make stubs` writes.

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "npcd/v1/admin.grpc.pb.h"
#include "npcd/v1/dialogue.grpc.pb.h"
#include "npcd/v1/intents.grpc.pb.h"
#include "npcd/v1/npcs.grpc.pb.h"

namespace {

namespace v1 = npcd::v1;
using Clock = std::chrono::system_clock;

constexpr auto kWorld = "cpp-inn";
constexpr auto kReady = std::chrono::seconds(120);
constexpr auto kCall = std::chrono::seconds(20);

[[noreturn]] void fail(const std::string& what) {
  std::cerr << "smoke: " << what << std::endl;
  std::exit(1);
}

void check(const grpc::Status& status, const std::string& call) {
  if (!status.ok()) fail(call + ": " + std::to_string(status.error_code()) + " " + status.error_message());
}

// Every call has a deadline; a ClientContext serves one call.
std::unique_ptr<grpc::ClientContext> within(std::chrono::seconds time = kCall) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(Clock::now() + time);
  return context;
}

void wait_until_it_serves(v1::Admin::Stub& admin) {
  const auto until = Clock::now() + kReady;
  std::string reason = "not asked yet";
  while (Clock::now() < until) {
    v1::StatusResponse answer;
    const auto status = admin.Status(within().get(), {}, &answer);
    if (status.ok() && answer.phase() == "serving") {
      std::cout << "serving: " << answer.version() << " with " << answer.model_name() << std::endl;
      return;
    }
    reason = status.ok() ? answer.phase() : status.error_message();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  fail("the daemon does not serve: " + reason);
}

void add_action(v1::DefineWorldRequest& world, const std::string& word, bool needs_target, bool speaks) {
  auto* action = world.add_actions();
  action->set_word(word);
  action->set_needs_target(needs_target);
  action->set_speaks(speaks);
}

void define_world(v1::Npcs::Stub& npcs) {
  v1::DefineWorldRequest world;
  world.set_world_id(kWorld);
  world.set_language("en");
  world.set_lore("The inn of Ravenmere stands by the old road. Mayor Greta rules here. People fear wolves.");
  auto* villager = world.add_archetypes();
  villager->set_archetype_id("villager");
  villager->set_description("Plain folk. Works by day, greets friends, flees from monsters.");
  add_action(world, "idle", false, false);
  add_action(world, "greet", true, true);
  add_action(world, "flee", false, false);
  for (const auto* emotion : {"calm", "happy", "afraid"}) world.add_emotions(emotion);
  auto* mira = world.add_personas();
  mira->set_persona_id("mira");
  mira->set_name("Mira");
  mira->set_text("Innkeeper of the tavern. Your brother is Otto. You fear wolves.");
  auto* rule = world.mutable_policy()->add_rows();  // the rule for when npcd is late
  rule->set_action("idle");
  rule->set_emotion("calm");

  v1::DefineWorldResponse answer;
  check(npcs.DefineWorld(within().get(), world, &answer), "DefineWorld");
  if (answer.content_hash().size() != 64) fail("DefineWorld: no content hash");
  std::cout << "defined: " << answer.world_id() << " version " << answer.version() << std::endl;
}

std::map<std::string, std::uint64_t> register_npcs(v1::Npcs::Stub& npcs) {
  v1::RegisterRequest request;
  request.set_world_id(kWorld);
  request.set_take_over(true);  // the leases of an earlier run go stale
  for (const auto* npc_id : {"mira-1", "mira-2"}) {
    auto* npc = request.add_npcs();
    npc->set_npc_id(npc_id);
    npc->set_archetype_id("villager");
    npc->set_persona_id("mira");
  }
  v1::RegisterResponse answer;
  check(npcs.Register(within().get(), request, &answer), "Register");
  if (answer.policy().rows_size() == 0) fail("Register: no compiled policy");
  std::map<std::string, std::uint64_t> leases;
  for (const auto& lease : answer.leases()) leases[lease.npc_id()] = lease.lease_epoch();
  if (leases.size() != 2) fail("Register: wanted two leases");
  std::cout << "registered: " << leases.size() << " NPCs" << std::endl;
  return leases;
}

v1::Observation sees_a_friend(const std::string& npc_id, std::uint64_t lease_epoch, std::uint64_t tick) {
  v1::Observation seen;
  seen.set_npc_id(npc_id);
  seen.set_lease_epoch(lease_epoch);
  seen.set_tick(tick);
  seen.set_place("tavern");
  seen.set_time_of_day("day");
  auto* percept = seen.add_percepts();
  percept->set_entity_id("you");
  percept->set_kind("player");
  percept->set_stance("friendly");
  percept->set_distance_m(3);
  percept->set_in_sight(true);
  return seen;
}

// True for an intent of the model that agrees with our observation. An intent of an earlier run agrees with another tick.
bool answers(const v1::Intent& intent, std::uint64_t tick) {
  return intent.source() == v1::INTENT_SOURCE_MODEL && intent.observed_tick() == tick;
}

// One stream: observations of all NPCs go in, intents of all NPCs come out, until the model has answered for each.
void live(v1::Intents::Stub& intents, const std::map<std::string, std::uint64_t>& leases) {
  auto context = within();
  auto stream = intents.Live(context.get());
  v1::ObservationFrame frame;
  frame.set_world_id(kWorld);
  frame.set_frame(1);
  for (const auto& [npc_id, lease_epoch] : leases) *frame.add_observations() = sees_a_friend(npc_id, lease_epoch, 1);
  // A problem of one NPC is reported and does not end the stream.
  *frame.add_observations() = sees_a_friend("nobody", 1, 1);
  if (!stream->Write(frame)) fail("Live: the first frame was not taken");

  std::map<std::string, v1::Intent> newest;
  bool complained = false, snapshot = false;
  std::size_t answered = 0;
  v1::IntentFrame answer;
  while ((answered < leases.size() || !complained) && stream->Read(&answer)) {
    if (answer.sequence() == 1) snapshot = answer.snapshot();
    for (const auto& intent : answer.intents()) newest[intent.npc_id()] = intent;
    // An observation without a change confirms the intent, which is then as young as that observation.
    for (const auto& confirmed : answer.confirmed()) {
      auto& intent = newest[confirmed.npc_id()];
      if (intent.version() == confirmed.version()) intent.set_observed_tick(confirmed.observed_tick());
    }
    for (const auto& error : answer.errors()) {
      if (error.npc_id() != "nobody" || error.code() != "UNKNOWN_NPC") {
        fail("Live: " + error.npc_id() + " " + error.code() + " " + error.message());
      }
      complained = true;
    }
    answered = 0;
    for (const auto& [npc_id, intent] : newest) answered += answers(intent, 1);
  }
  stream->WritesDone();
  context->TryCancel();
  while (stream->Read(&answer)) {
  }
  const auto status = stream->Finish();
  if (answered < leases.size()) fail("Live: not every NPC got an intent: " + status.error_message());
  if (!complained) fail("Live: the unknown NPC was not told");
  if (!snapshot) fail("Live: the first frame is no snapshot");
  for (const auto& [npc_id, intent] : newest) {
    std::cout << "intent: " << npc_id << " " << intent.action() << " " << intent.target_entity_id() << " ("
              << intent.emotion() << ")" << std::endl;
  }
}

// The same without a bidi stream: one call in, one call out.
void observe_and_get(v1::Intents::Stub& intents, const std::map<std::string, std::uint64_t>& leases) {
  v1::ObservationFrame frame;
  frame.set_world_id(kWorld);
  for (const auto& [npc_id, lease_epoch] : leases) *frame.add_observations() = sees_a_friend(npc_id, lease_epoch, 2);
  v1::ObserveResponse taken;
  check(intents.Observe(within().get(), frame, &taken), "Observe");
  if (taken.accepted() != leases.size()) fail("Observe: not everything was taken");
  v1::GetIntentsRequest request;
  request.set_world_id(kWorld);
  v1::GetIntentsResponse answer;
  check(intents.Get(within().get(), request, &answer), "Get");
  if (static_cast<std::size_t>(answer.intents_size()) != leases.size()) fail("Get: an intent is missing");
  std::cout << "got: " << answer.intents_size() << " intents from the table" << std::endl;
}

void talk(v1::Dialogue::Stub& dialogue) {
  v1::TalkRequest request;
  request.set_world_id(kWorld);
  request.set_npc_id("mira-1");
  request.set_player_id("you");
  request.set_turn_id("cpp-" + std::to_string(Clock::now().time_since_epoch().count()));
  request.set_text("What are you afraid of?");
  auto context = within();
  auto events = dialogue.Talk(context.get(), request);
  v1::TalkEvent event;
  std::string said;
  bool over = false;
  while (events->Read(&event)) {
    if (event.kind() == v1::TALK_EVENT_KIND_TEXT) said += event.text();
    if (event.kind() == v1::TALK_EVENT_KIND_REPLACE) said = event.text();
    if (event.kind() == v1::TALK_EVENT_KIND_END) {
      over = event.finish() == v1::TALK_FINISH_STOP || event.finish() == v1::TALK_FINISH_LENGTH;
      if (event.timings().output_tokens() == 0) fail("Talk: the last event has no timings");
    }
  }
  check(events->Finish(), "Talk");
  if (!over || said.empty()) fail("Talk: no answer");
  std::cout << "talked: \"" << said << "\"" << std::endl;

  v1::EndSessionRequest goodbye;
  goodbye.set_world_id(kWorld);
  goodbye.set_npc_id("mira-1");
  goodbye.set_player_id("you");
  v1::EndSessionResponse ended;
  check(dialogue.EndSession(within().get(), goodbye, &ended), "EndSession");
  if (!ended.ended()) fail("EndSession: there was no session");
}

// A wrong request is refused with a status that names the field.
void ask_wrongly(v1::Dialogue::Stub& dialogue) {
  v1::TalkRequest request;
  request.set_world_id(kWorld);
  request.set_npc_id("mira-1");
  request.set_player_id("you");
  auto context = within();
  auto events = dialogue.Talk(context.get(), request);
  v1::TalkEvent event;
  while (events->Read(&event)) {
  }
  const auto status = events->Finish();
  if (status.error_code() != grpc::StatusCode::INVALID_ARGUMENT) fail("an empty line was not refused");
  if (status.error_message().find("text") == std::string::npos) fail("the refusal does not name the field");
  std::cout << "refused: " << status.error_message() << std::endl;
}

// A channel to a daemon. A proxy in the environment (http_proxy) is for other machines; this machine is reached directly.
std::shared_ptr<grpc::Channel> open_channel(const std::string& target) {
  grpc::ChannelArguments arguments;
  for (const char* here : {"unix:", "localhost:", "127.", "[::1]"}) {
    if (target.rfind(here, 0) == 0) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  }
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string target = argc > 1 ? argv[1] : "127.0.0.1:50061";
  const auto channel = open_channel(target);
  const auto admin = v1::Admin::NewStub(channel);
  const auto npcs = v1::Npcs::NewStub(channel);
  const auto intents = v1::Intents::NewStub(channel);
  const auto dialogue = v1::Dialogue::NewStub(channel);

  wait_until_it_serves(*admin);
  define_world(*npcs);
  const auto leases = register_npcs(*npcs);
  live(*intents, leases);
  observe_and_get(*intents, leases);
  talk(*dialogue);
  ask_wrongly(*dialogue);
  std::cout << "all is well" << std::endl;
  return 0;
}
