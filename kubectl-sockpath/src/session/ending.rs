//! How sessions with helpers end: in order, given up, or waited for until each has answered.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use sockpath_protocol::Request;
use tokio::time::{Instant, sleep_until};

use super::error::SessionError;
use super::event::Event;
use super::fleet::Fleet;
use super::life::Patience;
use super::resume::Outcome;
use super::transport::Ending;

impl Fleet {
    /// Ends the session with a helper that no longer responds; [`Fleet::next`] reports it after the clean-up.
    pub fn give_up(&mut self, index: usize, why: String) {
        let Some(member) = self.members.get_mut(index).filter(|m| m.listens()) else { return };
        for task in &member.tasks {
            task.abort();
        }
        let Some(keeper) = member.keeper.take() else { return };
        let error = SessionError::CutOff { detail: why };
        self.aftermaths.spawn(async move { (index, Outcome::Over(Event::Lost(error.with(&keeper.end(Ending::Kill).await)))) });
    }

    /// Asks every helper the same and hands on what they answer, as it comes, until each has ended. A helper gets `patience`
    /// from when it has joined; how long one may take to start, who starts it decides.
    pub async fn ask_all(&mut self, request: &Request, patience: Duration, mut on: impl FnMut(usize, Event)) {
        self.send_all(request).await;
        self.send_all(&Request::Finish).await;
        let mut deadlines: BTreeMap<usize, Instant> = BTreeMap::new();
        loop {
            let next = deadlines.iter().min_by_key(|(_, at)| **at).map(|(index, at)| (*index, *at));
            let due = next.map_or_else(Instant::now, |(_, at)| at);
            tokio::select! {
                biased;
                event = self.next() => match event {
                    None => break,
                    Some((index, event)) => {
                        match &event {
                            Event::Joined(_) => drop(deadlines.insert(index, Instant::now() + patience)),
                            Event::Said(_) | Event::Disconnected(_) | Event::Reconnected(_) => {}
                            Event::Ended(_) | Event::Lost(_) => drop(deadlines.remove(&index)),
                        }
                        on(index, event);
                    }
                },
                () = sleep_until(due), if next.is_some() => {
                    if let Some((index, _)) = next {
                        deadlines.remove(&index);
                        self.give_up(index, not_within(patience));
                    }
                }
            }
        }
        self.close().await;
    }

    /// Ends all sessions in order: asks for it, hands on what is still said, and kills who has not ended within `patience`. Helpers
    /// that have not started are given up at once. Errors of helpers reach `on` as events like everything else.
    pub async fn finish(&mut self, patience: &Patience, mut on: impl FnMut(usize, Event)) {
        self.ending.send_replace(true);
        // No heartbeats are sent, and none answered, from here on.
        self.members.iter().for_each(|member| member.life.set_works(false));
        self.give_up_starting().await;
        self.send_all(&Request::Finish).await;
        let began = Instant::now();
        let mut hurried = pin!(patience.lost());
        loop {
            let until = patience.until(began, self.last_sign().unwrap_or(began));
            let event = tokio::select! {
                biased;
                event = self.next() => event,
                () = &mut hurried => break,
                // Signs of life are not events.
                () = sleep_until(until) => {
                    if patience.until(began, self.last_sign().unwrap_or(began)) > until {
                        continue;
                    }
                    break;
                }
            };
            let Some((index, event)) = event else { break };
            if matches!(event, Event::Reconnected(_)) {
                self.send(index, Request::Finish).await;
            }
            on(index, event);
        }
        let waited = began.elapsed();
        // What is known of the lost ones is reported, however long their clean-up takes.
        while let Some(Ok((index, outcome))) = self.aftermaths.join_next().await {
            // One that was resumed at the last moment is among those that are ended now.
            self.members[index].over = matches!(outcome, Outcome::Over(_));
            let event = self.settle(index, outcome);
            on(index, event);
        }
        for index in self.close().await {
            on(index, Event::Lost(SessionError::CutOff { detail: not_within(waited) }));
        }
    }

    /// When a helper that has not ended last showed that it lives.
    fn last_sign(&self) -> Option<Instant> {
        self.members.iter().filter(|m| !m.over && m.has_joined()).map(|m| m.life.last_sign()).max()
    }

    /// Cleans up behind all helpers at once; returns those that had not said `end`.
    async fn close(&mut self) -> Vec<usize> {
        let mut unfinished = Vec::new();
        let mut endings = Vec::new();
        for (index, member) in self.members.iter_mut().enumerate() {
            for task in &member.tasks {
                task.abort();
            }
            if let Some(keeper) = member.keeper.take() {
                let how = match (member.over, member.stays) {
                    // Given up while it started: it has not ended.
                    _ if !member.has_joined() => Ending::Kill,
                    (true, true) => Ending::Stay,
                    (true, false) => Ending::Done,
                    (false, _) => Ending::Kill,
                };
                endings.push(tokio::spawn(keeper.end(how)));
            }
            if !std::mem::replace(&mut member.over, true) {
                unfinished.push(index);
            }
        }
        for ending in endings {
            let _ = ending.await;
        }
        unfinished
    }
}

fn not_within(patience: Duration) -> String {
    format!("it did not end within {} s", (patience.as_secs_f64() * 10.0).round() / 10.0)
}
