//! Who is where: joining, watching, asking, serving, and going away.

use std::sync::Arc;

use super::Router;
use super::batch::{Batch, Haste};
use super::identities::Thing;
use super::link::Link;
use super::live::{self, Live, Shared};
use super::seat::{Circle, Cursor, Interest, Placing, Seat, View};
use super::workers::Parting;
use crate::auth::Identity;
use crate::error::{Reason, Refusal};
use crate::frame::{Body, Control, Str, pb};
use crate::log::{self, Limit, Page, Wait};
use crate::session::{self, Begin, Start};

/// What a connection wants to be in a session.
#[derive(Clone, Debug)]
pub struct Joining {
    /// The member's name; empty for the connection's.
    pub name: Str,
    /// Its role.
    pub role: Str,
    /// Where it wants to begin.
    pub start: Start,
    /// What it is told beyond what is for everybody.
    pub interest: Interest,
    /// What it is to be shown.
    pub view: View,
}

/// What is read at once for a seat that has fallen behind.
const CATCH_UP: Limit = Limit {
    frames: 256,
    bytes: 256 << 10,
};

impl Router {
    /// Gives the connection a place in the session, and tells it so in answer to the frame `reply_to`.
    pub fn join(
        &self,
        link: &Arc<Link>,
        session: &Str,
        joining: Joining,
        reply_to: &Str,
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        let before = link.seat(session);
        self.check_joins(link, before.is_some())?;
        let by = link.identity().ok_or_else(unknown)?;
        let (live, _) = self.open(session, &by)?;
        let placing = self.placing(link, &live, &joining);
        let mut shared = live.lock();
        shared.check_here(session)?;
        let mut entry = shared.enter(&placing, &joining, batch)?;
        if joining.start.after.is_none() {
            // What is in the log but not durable yet is news to whoever begins now.
            entry.begin.next = entry.begin.next.min(shared.committed + 1);
        }
        let cursor = Cursor::at(entry.begin.next, shared.next_note());
        let seat = Arc::new(Seat::new(placing, cursor));
        // Marked, it is not written to before its Joined is in the outbox.
        seat.mark();
        let old = before.and_then(|before| shared.rise(before.key()));
        let evicted = entry.replaced.and_then(|key| shared.rise(key));
        shared.sit(Arc::clone(&seat));
        let joined = shared.joined(self, &entry.begin, &joining, &by);
        drop(shared);

        if let Some(old) = old {
            let mut cursor = seat.cursor();
            cursor.take_asked(&mut old.cursor());
            // What has ended by now was told to the old place, or is told by the log.
            live.keep_open(&mut cursor);
        }
        if let Some(evicted) = evicted {
            let refusal = Refusal::new(
                Reason::MemberReplaced,
                format!("another connection joined as {}", joining.name),
            );
            dismiss(&evicted, &refusal, batch);
        }
        if !link.take_seat(&seat) {
            self.vacate(&seat, batch);
            return Err(over());
        }
        link.answer(reply_to, live.id(), Body::Control(Box::new(Control::Joined(joined))));
        if let Some(from) = entry.begin.void_from {
            link.push(seat.gap(from, entry.begin.next - 1, pb::GapReason::EpochChanged));
        }
        seat.unmark();
        link.mark(&seat);
        batch.touch(&live, Haste::Now);
        batch.touch_link(link);
        tracing::debug!(connection = %link.name(), session = %session, member = %joining.name, role = %joining.role, "joined");
        Ok(())
    }

    fn placing(&self, link: &Arc<Link>, live: &Arc<Live>, joining: &Joining) -> Placing {
        let subject = link.identity().map_or(Str::EMPTY, |identity| identity.subject.clone());
        let address = pb::Address {
            role: joining.role.to_string(),
            member_id: joining.name.to_string(),
            subject: subject.to_string(),
            ..pb::Address::default()
        };
        Placing {
            live: Arc::clone(live),
            link: Arc::clone(link),
            key: session::Seat {
                connection: link.id(),
                number: self.next_id(),
            },
            view: joining.view,
            address: Arc::new(address),
            name: joining.name.clone(),
            sender: session::sender(&subject, &joining.name),
            interest: joining.interest,
        }
    }

    fn check_joins(&self, link: &Link, is_in: bool) -> Result<(), Refusal> {
        let limit = self.limits().joins;
        if !is_in && link.places().seats.len() >= limit {
            let text = format!("the connection is in {limit} sessions, the most it may be; leave some first");
            return Err(Refusal::new(Reason::TooManyJoins, text).with("limit", limit.to_string()));
        }
        Ok(())
    }

    /// The connection will wait for the answer to a request that it is about to send. One that is no member gets a seat that
    /// is shown just that. Whether it did not wait for it before.
    pub fn expect_answer(&self, link: &Arc<Link>, live: &Arc<Live>, request: &Str) -> Result<bool, Refusal> {
        self.check_not_others(link, live, request)?;
        if let Some(seat) = link.seat(live.id()) {
            return Ok(seat.cursor().ask(request));
        }
        self.check_joins(link, false)?;
        let asking = Joining {
            name: link.name().clone(),
            role: Str::EMPTY,
            start: Start::default(),
            interest: Interest::default(),
            view: View::Asker,
        };
        let placing = self.placing(link, live, &asking);
        let mut shared = live.lock();
        shared.check_here(live.id())?;
        shared.check_seats()?;
        let mut cursor = Cursor::at(shared.session.head() + 1, shared.next_note());
        cursor.ask(request);
        let seat = Arc::new(Seat::new(placing, cursor));
        shared.sit(Arc::clone(&seat));
        drop(shared);
        if !link.take_seat(&seat) {
            live.lock().rise(seat.key());
            return Err(over());
        }
        Ok(true)
    }

    /// Nobody is shown, not even for a moment, what is answered to somebody else.
    fn check_not_others(&self, link: &Link, live: &Live, request: &Str) -> Result<(), Refusal> {
        let asker = live.lock().asked_by(request);
        let subject = link.identity().map_or(Str::EMPTY, |identity| identity.subject.clone());
        match asker.is_some_and(|asker| asker.subject != *subject) {
            true => {
                let text =
                    format!("another sender's request {request} is open in this session; use ids that are unique");
                Err(Refusal::new(Reason::RequestIdInUse, text))
            }
            false => Ok(()),
        }
    }

    /// The request was refused: nobody waits for its answer.
    pub fn expect_no_answer(&self, link: &Arc<Link>, live: &Arc<Live>, request: &Str) {
        if let Some(seat) = link.seat(live.id()) {
            seat.cursor().answered(request);
            self.tidy_seat(link, &seat);
        }
    }

    /// Takes away the seats of askers who have all their answers.
    pub fn tidy(&self, link: &Arc<Link>) {
        if !link.take_answered() {
            return;
        }
        let seats: Vec<_> = link
            .places()
            .seats
            .iter()
            .filter(|seat| seat.view() == View::Asker)
            .cloned()
            .collect();
        for seat in seats {
            self.tidy_seat(link, &seat);
        }
    }

    fn tidy_seat(&self, link: &Arc<Link>, seat: &Arc<Seat>) {
        if seat.view() == View::Asker && seat.cursor().asked() == 0 {
            link.places().seats.remove(seat.live().id());
            seat.live().lock().rise(seat.key());
        }
    }

    /// The connection leaves the session.
    pub fn leave(&self, link: &Arc<Link>, session: &str, batch: &mut Batch) -> Result<(), Refusal> {
        let seat = link.seat(session).filter(|seat| seat.is_member()).ok_or_else(|| {
            Refusal::new(
                Reason::NotAMember,
                format!("the connection is not a member of session {session}"),
            )
        })?;
        link.places().seats.remove(session);
        self.vacate(&seat, batch);
        Ok(())
    }

    pub(super) fn vacate(&self, seat: &Arc<Seat>, batch: &mut Batch) {
        let live = seat.live();
        let mut shared = live.lock();
        shared.rise(seat.key());
        shared.last_used = batch.now.mono;
        let left = shared.session.leave(seat.name(), seat.key(), batch.now.mono);
        if let Some(member) = left {
            let left = pb::Presence {
                left: vec![live::member(&member)],
                ..pb::Presence::default()
            };
            let note = shared.presence(left);
            shared.note(note, Circle::Presence);
            batch.touch(live, Haste::Now);
        }
        // What it asked before it joined, or without, it asked by the connection's name.
        let asker = session::sender(&seat.address().subject, seat.link().name());
        shared.session.asker_gone(&asker, batch.now.mono);
        self.arm(live, &mut shared);
    }

    /// Reads the log for a seat of the connection that has fallen behind, if there is one.
    pub fn read_for_lagging(&self, link: &Link) -> Option<(Arc<Seat>, Wait<Page>)> {
        let seat = link.take_lagging()?;
        let next = seat.cursor().next;
        let page = self.inner.log.read(seat.live().id(), next, CATCH_UP);
        Some((seat, page))
    }

    /// What was read is there, or cannot be had: then the connection is out of the session, and may join again.
    pub fn caught_up(&self, seat: &Arc<Seat>, page: Result<Page, log::Error>) {
        let next = seat.cursor().next;
        let page = page.and_then(|page| match page.frames.is_empty() && page.first <= next {
            true => Err(log::Error::Unavailable(format!(
                "it has nothing from {next} on, though it should"
            ))),
            false => Ok(page),
        });
        match page {
            Ok(page) => seat.link().catch_up(seat, &page),
            Err(_) if seat.is_vacated() => {}
            Err(error) => {
                let mut batch = Batch::new(self.now());
                self.vacate(seat, &mut batch);
                dismiss(seat, &error.into(), &mut batch);
                batch.finish(None);
            }
        }
    }

    /// The connection is over.
    pub fn detach(&self, link: &Arc<Link>) {
        let mut batch = Batch::new(self.now());
        self.retire(link, Parting::Lost, &mut batch);
        let seats = link.places().seats.take();
        for seat in seats {
            self.vacate(&seat, &mut batch);
        }
        link.let_go_of_seats();
        if self.links(link.id()).remove(&link.id()).is_some() {
            self.inner.link_count.send_modify(|count| *count -= 1);
            if let Some(identity) = link.identity() {
                self.inner.subjects.give_back(&identity.subject, Thing::Link);
            }
            self.inner.timers.set_link(None, link.arm(None), link);
        }
        batch.finish(None);
    }
}

fn over() -> Refusal {
    Refusal::new(Reason::UnexpectedFrame, "the connection is over")
}

fn unknown() -> Refusal {
    Refusal::new(Reason::Unauthenticated, "say first who it is")
}

/// Tells a connection that it is not in the session any more. Its seat was taken away before.
pub(super) fn dismiss(seat: &Arc<Seat>, refusal: &Refusal, batch: &mut Batch) {
    let link = seat.link();
    let mut places = link.places();
    if places
        .seats
        .get(seat.live().id())
        .is_some_and(|there| there.key() == seat.key())
    {
        places.seats.remove(seat.live().id());
    }
    drop(places);
    link.tell(
        seat.live().id(),
        Control::Left(pb::Left {
            error: Some(refusal.to_pb()),
        }),
    );
    batch.touch_link(link);
    link.recheck();
}

impl Shared {
    fn check_seats(&self) -> Result<(), Refusal> {
        let limit = self.limits().members;
        match self.seats().len() < limit {
            true => Ok(()),
            false => {
                let text = format!("{limit} connections are in the session or watch it, the most that may");
                Err(Refusal::new(Reason::TooManyMembers, text).with("limit", limit.to_string()))
            }
        }
    }

    fn enter(&mut self, placing: &Placing, joining: &Joining, batch: &Batch) -> Result<session::Entry, Refusal> {
        self.check_seats()?;
        if joining.view == View::Watcher {
            return Ok(session::Entry {
                begin: self.session.begin(&joining.start)?,
                replaced: None,
            });
        }
        let member = session::Member {
            name: joining.name.clone(),
            role: joining.role.clone(),
            subject: placing.address.subject.as_str().into(),
            seat: placing.key,
            joined_at: batch.now.wall,
        };
        let listed = live::member(&member);
        let was = self
            .seats()
            .iter()
            .find(|seat| seat.key().connection == placing.key.connection && seat.is_member());
        let was = was.map(|seat| (seat.name().clone(), seat.key()));
        let entry = self.session.join(member, &joining.start)?;
        let mut left = Vec::new();
        if let Some((name, key)) = was.filter(|(name, _)| *name != joining.name) {
            left.extend(
                self.session
                    .leave(&name, key, batch.now.mono)
                    .map(|member| live::member(&member)),
            );
        }
        if entry.replaced.is_none() {
            let note = self.presence(pb::Presence {
                joined: vec![listed],
                left,
                ..pb::Presence::default()
            });
            self.note(note, Circle::Presence);
        }
        self.last_used = batch.now.mono;
        Ok(entry)
    }

    fn joined(&self, router: &Router, begin: &Begin, joining: &Joining, by: &Identity) -> pb::Joined {
        let member = joining.view == View::Member;
        let shows_members = router.shows_members(by, self.session.id());
        pb::Joined {
            epoch: self.session.epoch().to_string(),
            head_seq: self.committed,
            first_seq: self.session.first(),
            resumed: begin.resumed,
            member_id: if member {
                joining.name.to_string()
            } else {
                String::new()
            },
            role: if member {
                joining.role.to_string()
            } else {
                String::new()
            },
            members: match shows_members {
                true => self.member_list(),
                false => Vec::new(),
            },
            member_count: match shows_members {
                true => self.session.members().len() as u32,
                false => 0,
            },
            open_requests: self.request_list(router),
        }
    }
}
