//! Batches on one connection: where each ends in what was sent, which are acknowledged, and where the next connection begins.
use std::{collections::VecDeque, io, io::IoSlice};

use fail::fail_point;

use super::link::Link;
use crate::{
    model::{Batch, Lane},
    plugins::outputs::encode::Encode,
};

pub struct Flow {
    pub link: Link,
    /// The batches, from the Sink's front on, of which anything was sent or looked at.
    begun: VecDeque<Begun>,
    /// Where the front begins, counted in bytes handed to this connection; below zero if an earlier one delivered its beginning.
    front_at: i64,
    acknowledged: i64,
}
struct Begun {
    id: (Lane, u64),
    end: i64,
}
/// How far a batch was delivered by a connection that has ended: always to an event's end.
pub struct Resume {
    id: (Lane, u64),
    at: usize,
}
impl Resume {
    pub fn is_of(&self, batch: &Batch) -> bool {
        self.id == id(batch)
    }
}
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    All,
    Part,
}

impl Flow {
    pub fn new(link: Link, resume: Option<&Resume>) -> Self {
        Self {
            link,
            begun: VecDeque::new(),
            front_at: resume.map_or(0, |resume| -(resume.at as i64)),
            acknowledged: 0,
        }
    }
    /// These begin with what was begun.
    pub fn goes_on_with(&self, batches: &[Batch]) -> bool {
        self.begun
            .iter()
            .zip(batches)
            .all(|(begun, batch)| begun.id == id(batch))
    }
    /// Nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.begun.is_empty()
    }
    fn taken(&self) -> i64 {
        self.link.taken() as i64
    }
    fn start_of(&self, number: usize) -> i64 {
        match number {
            0 => self.front_at,
            _ => self.begun[number - 1].end,
        }
    }

    /// Goes on sending where the last call stopped, as far as it goes without waiting.
    pub fn send(&mut self, batches: &[Batch], encode: Encode, copied: &mut Vec<u8>) -> io::Result<Sent> {
        loop {
            let taken = self.taken();
            let done = self.begun.partition_point(|begun| begun.end <= taken);
            let Some(rest) = batches.get(done..).filter(|rest| !rest.is_empty()) else {
                return match self.link.flush() {
                    Ok(()) => Ok(Sent::All),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent::Part),
                    Err(error) => Err(error),
                };
            };
            let joined = encode.join(rest, copied);
            let start = self.start_of(done);
            self.begun.truncate(done);
            let ends = rest.iter().zip(&joined.ends);
            self.begun.extend(ends.map(|(batch, end)| Begun {
                id: id(batch),
                end: start + *end as i64,
            }));
            let mut slices = &mut { joined.slices }[..];
            IoSlice::advance_slices(&mut slices, (taken - start) as usize);
            while !slices.is_empty() {
                fail_point!("tcp-write");
                match self.link.write(slices) {
                    Ok(taken) => IoSlice::advance_slices(&mut slices, taken),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Sent::Part),
                    Err(error) => return Err(error),
                }
            }
        }
    }
    /// Asks how far the peer has it. True: further than before.
    pub fn acknowledged(&mut self) -> io::Result<bool> {
        let before = self.acknowledged;
        self.acknowledged = self.link.acknowledged()? as i64;
        Ok(self.acknowledged > before)
    }
    fn whole(&self, most: usize) -> usize {
        self.begun
            .partition_point(|begun| begun.end <= self.acknowledged)
            .min(most)
    }
    /// Lets go of the batches, of the first `most`, that are acknowledged whole: they are reported.
    pub fn settle(&mut self, most: usize) -> usize {
        let whole = self.whole(most);
        self.front_at = self.start_of(whole);
        self.begun.drain(..whole);
        whole
    }
    /// How many are delivered whole, and where in the next one to begin on another connection.
    pub fn end(&self, batches: &[Batch], encode: Encode, copied: &mut Vec<u8>) -> (usize, Option<Resume>) {
        let whole = self.whole(batches.len());
        let resume = batches.get(whole).map(|next| Resume {
            id: id(next),
            at: border(
                encode,
                next,
                (self.acknowledged - self.start_of(whole)).max(0) as usize,
                copied,
            ),
        });
        (whole, resume)
    }
}

fn id(batch: &Batch) -> (Lane, u64) {
    (batch.lane, batch.seq)
}
/// The last end of an event within the first `bytes` bytes of a batch as it is sent.
fn border(encode: Encode, batch: &Batch, bytes: usize, copied: &mut Vec<u8>) -> usize {
    if encode == Encode::Raw {
        let ends = batch.events.iter().scan(0, |end, event| {
            *end += event.len() + 1;
            Some(*end)
        });
        return ends.take_while(|end| *end <= bytes).last().unwrap_or(0);
    }
    // Each event is one line.
    let joined = encode.join(std::slice::from_ref(batch), copied);
    let (mut before, mut border) = (0, 0);
    for slice in &joined.slices {
        let within = &slice[..slice.len().min(bytes - before)];
        if let Some(last) = memchr::memrchr(b'\n', within) {
            border = before + last + 1;
        }
        before += within.len();
    }
    border
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::outputs::testing::batch;

    #[test]
    fn borders_are_ends_of_events() {
        let some = batch(0, &["one", "", "three"]);
        let mut copied = Vec::new();
        let raw = (0..12)
            .map(|n| border(Encode::Raw, &some, n, &mut copied))
            .collect::<Vec<_>>();
        assert_eq!(raw, [0, 0, 0, 0, 4, 5, 5, 5, 5, 5, 5, 11]);
        let mut json = Vec::new();
        crate::plugins::outputs::encode::json(&some, &mut json);
        let ends = memchr::memchr_iter(b'\n', &json).map(|at| at + 1).collect::<Vec<_>>();
        assert_eq!(ends.len(), 3);
        for bytes in 0..=json.len() {
            let expected = ends.iter().copied().filter(|end| *end <= bytes).max().unwrap_or(0);
            assert_eq!(border(Encode::Json, &some, bytes, &mut copied), expected);
        }
    }
}
