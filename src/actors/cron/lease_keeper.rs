//! Holds this agent's address in the store: registers, beats, registers anew when the lease or the address changes, gives back at a
//! clean stop. What it thinks is in `registration`.
//!
//! Hears: ObserveLease, GiveBack. Says: StandingChanged → JobWatcher, MayFire → CronRunner, the latest only, until they have heard it.
//! Waits: for one turn of the registration, of which each call to the store has a limit; between turns on a timer.
use std::time::Duration;

use actix::prelude::*;

use super::registration::{Parts, Registration, Turn};
use crate::{
    actors::kit::Later,
    messages::{
        jobs::MayFire,
        lease::{GiveBack, LeaseView, ObserveLease, Standing, StandingChanged},
    },
    model::SharedSign,
};

/// Timers do not count while the machine sleeps, the clock does: it is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries to tell somebody who has just fallen.
const TELL_AGAIN: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub struct LeaseKeeperParts {
    pub registration: Parts,
    /// None is started while the store is out of reach (`on_partition = "hold"`).
    pub hold_when_away: bool,
    /// None, and no runner: this agent is only seen.
    pub watcher: Option<Recipient<StandingChanged>>,
    /// None: there is no runner of jobs in this house.
    pub runner: Option<Recipient<MayFire>>,
    /// Where the runner sees whether this agent was frozen.
    pub sign: SharedSign,
    pub log: slog::Logger,
}

pub struct LeaseKeeper {
    parts: LeaseKeeperParts,
    /// None while a turn is under way. A fall loses it: the next life registers anew, as the same instance.
    registration: Option<Registration>,
    standing: Standing,
    trouble: Option<String>,
    heard: Option<Duration>,
    granted: u64,
    /// Leases of lives that fell.
    granted_before: u64,
    timer: Option<SpawnHandle>,
    /// What the watcher and the runner have heard.
    told: (Option<Standing>, Option<MayFire>),
    telling: bool,
    /// Steady time of the last turn.
    turned_at: Duration,
    /// A stop has begun: why.
    giving_back: Option<String>,
    gone: bool,
    asked: Later<()>,
}

impl LeaseKeeper {
    pub fn new(parts: LeaseKeeperParts) -> Self {
        Self {
            registration: None,
            standing: Standing::Waiting("the store was not asked yet".into()),
            trouble: None,
            heard: None,
            granted: 0,
            granted_before: 0,
            timer: None,
            told: (None, None),
            telling: false,
            turned_at: Duration::ZERO,
            giving_back: None,
            gone: false,
            asked: Later::default(),
            parts,
        }
    }

    /// The next turn, unless one is under way.
    fn turn(&mut self, ctx: &mut Context<Self>) {
        let Some(mut registration) = self.registration.take() else {
            return;
        };
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if let Some(why) = self.giving_back.clone() {
            let work = async move { registration.give_back(&why).await };
            ctx.spawn(work.into_actor(self).map(|(), keeper, _| {
                keeper.gone = true;
                keeper.asked.tell(());
            }));
            return;
        }
        let asked = self.parts.registration.clock.steady();
        let work = async move {
            let turn = registration.turn().await;
            (registration, turn)
        };
        ctx.spawn(work.into_actor(self).map(move |(registration, turn), keeper, ctx| {
            keeper.turned_at = match turn.standing {
                // Worth from when it was asked for: who was frozen on the way finds one that may be long out of date.
                Standing::Held { .. } | Standing::Taken { .. } => asked,
                Standing::Waiting(_) | Standing::Away { .. } => keeper.parts.registration.clock.steady(),
            };
            keeper.turned(registration, turn, ctx);
        }));
    }
    fn turned(&mut self, registration: Registration, turn: Turn, ctx: &mut Context<Self>) {
        let Turn {
            standing,
            next_in,
            trouble,
        } = turn;
        self.heard = registration.heard;
        self.granted = self.granted_before + registration.granted;
        self.registration = Some(registration);
        if trouble != self.trouble || standing.word() != self.standing.word() {
            match (&trouble, &standing) {
                (Some(trouble), Standing::Away { .. }) => {
                    slog::warn!(self.parts.log, "the store is out of reach, trying again"; "why" => trouble, "next_in" => ?next_in)
                }
                (Some(trouble), _) => {
                    slog::warn!(self.parts.log, "the agent is not registered"; "standing" => standing.word(),
                    "why" => trouble, "next_in" => ?next_in)
                }
                (None, Standing::Held { ip, lease }) => {
                    slog::info!(self.parts.log, "the agent is registered"; "ip" => %ip, "lease" => format!("{lease:x}"))
                }
                (None, standing) => {
                    slog::info!(self.parts.log, "another agent has the address, waiting for one TTL"; "standing" => ?standing)
                }
            }
        }
        self.trouble = trouble;
        self.standing = standing;
        self.tell(ctx);
        if self.giving_back.is_some() {
            return self.turn(ctx);
        }
        let now = self.parts.registration.clock.steady();
        self.wait_until(now + next_in, ctx);
    }
    fn wait_until(&mut self, due: Duration, ctx: &mut Context<Self>) {
        let left = due.saturating_sub(self.parts.registration.clock.steady());
        self.timer = Some(ctx.run_later(left.min(LOOK), move |keeper, ctx| {
            keeper.timer = None;
            match keeper.parts.registration.clock.steady() >= due {
                true => keeper.turn(ctx),
                false => keeper.wait_until(due, ctx),
            }
        }));
    }

    /// Tells whoever has not heard the latest.
    fn tell(&mut self, ctx: &mut Context<Self>) {
        if self.telling {
            return;
        }
        let (standing, may_fire) = (
            self.standing.clone(),
            may_fire(&self.standing, self.parts.hold_when_away),
        );
        // The runner first: what must not be started must not be started while the watcher is still at it.
        if let Some(runner) = self.parts.runner.clone()
            && self.told.1.as_ref() != Some(&may_fire)
        {
            self.telling = true;
            let work = async move { (runner.send(may_fire.clone()).await.is_ok(), may_fire) };
            ctx.spawn(work.into_actor(self).map(|(heard, may_fire), keeper, ctx| {
                keeper.telling = false;
                if heard {
                    keeper.told.1 = Some(may_fire);
                }
                keeper.tell_on(heard, ctx);
            }));
        } else if let Some(watcher) = self.parts.watcher.clone()
            && self.told.0.as_ref() != Some(&standing)
        {
            self.telling = true;
            let work = async move { (watcher.send(StandingChanged(standing.clone())).await.is_ok(), standing) };
            ctx.spawn(work.into_actor(self).map(|(heard, standing), keeper, ctx| {
                keeper.telling = false;
                if heard {
                    keeper.told.0 = Some(standing);
                }
                keeper.tell_on(heard, ctx);
            }));
        } else {
            // Only now: who was frozen must have heard how it stands before it starts anything.
            self.parts.sign.note(self.turned_at);
        }
    }
    fn tell_on(&mut self, heard: bool, ctx: &mut Context<Self>) {
        match heard {
            true => self.tell(ctx),
            false => {
                ctx.run_later(TELL_AGAIN, |keeper, ctx| keeper.tell(ctx));
            }
        }
    }
}

impl Actor for LeaseKeeper {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        (self.timer, self.telling) = (None, false); // the former life's ended with it
        if self.gone {
            return self.asked.tell(());
        }
        self.granted_before = self.granted;
        self.registration = Some(Registration::new(self.parts.registration.clone()));
        self.turn(ctx);
    }
}
impl Supervised for LeaseKeeper {}

impl Handler<ObserveLease> for LeaseKeeper {
    type Result = MessageResult<ObserveLease>;
    fn handle(&mut self, _: ObserveLease, _: &mut Self::Context) -> Self::Result {
        let now = self.parts.registration.clock.steady();
        MessageResult(LeaseView {
            standing: self.standing.clone(),
            heard: self.heard.map(|heard| now.saturating_sub(heard)),
            trouble: self.trouble.clone().into_iter().collect(),
            granted: self.granted,
        })
    }
}
impl Handler<GiveBack> for LeaseKeeper {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, GiveBack { why }: GiveBack, ctx: &mut Self::Context) -> Self::Result {
        self.giving_back.get_or_insert(why);
        let answer = self.asked.ask();
        match self.gone {
            true => self.asked.tell(()),
            false => self.turn(ctx), // at once, or after the turn that is under way
        }
        answer
    }
}

/// Whether jobs may be started while it stands so.
fn may_fire(standing: &Standing, hold_when_away: bool) -> MayFire {
    let refused = match standing {
        Standing::Held { .. } => None,
        Standing::Waiting(why) => Some(why.clone()),
        Standing::Taken { holder, .. } => Some(holder.clone()),
        Standing::Away { .. } if hold_when_away => Some("etcd is away, and on_partition is hold".into()),
        Standing::Away { .. } => None,
    };
    MayFire { refused }
}
