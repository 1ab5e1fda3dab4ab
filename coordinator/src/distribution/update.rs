//! An update as frames: parts that fit, the signed manifest in the last.

use prost::Message;
use warren_proto::codec::MAX_CONTROL_FRAME;
use warren_proto::peer_map::{Difference, Generation};
use warren_proto::wire;

/// Room left in a frame for what surrounds the counted items.
const ENVELOPE: usize = 1024;

/// Splits `difference` against `base` into frames. The manifest and, where they fit, hints go with the last.
pub(super) fn frames(
    base: Generation,
    difference: Difference,
    manifest: wire::SignedObject,
    hints: Vec<wire::PeerHint>,
) -> Vec<wire::CoordinatorFrame> {
    let mut packer = Packer { base, parts: vec![empty(base)], room: MAX_CONTROL_FRAME - ENVELOPE };
    for tombstone in difference.tombstones {
        packer.part(tombstone.encoded_len()).tombstones.push(tombstone);
    }
    for object in difference.objects {
        packer.part(object.encoded_len()).objects.push(object);
    }
    for peer in difference.peers {
        packer.part(peer.encoded_len()).peers.push(peer);
    }
    for hint in hints {
        packer.part(hint.encoded_len()).hints.push(hint);
    }
    let last = packer.part(manifest.encoded_len());
    last.manifest = Some(manifest);
    let last = packer.parts.len() - 1;
    for part in packer.parts.iter_mut().take(last) {
        part.more = true;
    }
    let frame = |part| wire::CoordinatorFrame { frame: Some(wire::coordinator_frame::Frame::Update(part)) };
    packer.parts.into_iter().map(frame).collect()
}

struct Packer {
    base: Generation,
    parts: Vec<wire::Update>,
    room: usize,
}

impl Packer {
    /// The part that takes an item of `size` bytes.
    fn part(&mut self, size: usize) -> &mut wire::Update {
        // A field's tag and length take at most 16 bytes.
        let size = size + 16;
        if size > self.room {
            self.parts.push(empty(self.base));
            self.room = MAX_CONTROL_FRAME - ENVELOPE;
        }
        self.room = self.room.saturating_sub(size);
        let last = self.parts.len() - 1;
        &mut self.parts[last]
    }
}

fn empty(base: Generation) -> wire::Update {
    wire::Update { from_epoch: base.epoch, from_revision: base.revision, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fit_a_frame_and_only_the_last_carries_the_manifest() {
        let object = |n: usize| wire::ScopeObject {
            kind: wire::ObjectKind::Policy.into(),
            name: format!("Service/ns/s{n}"),
            content: vec![0; 20_000].into(),
            min_reader: 1,
        };
        let peer = |n: u8| wire::PeerRecord {
            instance_id: vec![n; 16],
            certificates: vec![wire::CertificateChain { certificates: vec![vec![0; 700]; 2] }; 2],
        };
        let difference = Difference {
            objects: (0..60).map(object).collect(),
            peers: (0..250).map(peer).collect(),
            tombstones: Vec::new(),
        };
        let manifest = wire::SignedObject { body: vec![1; 100_000], ..Default::default() };
        let frames = frames(Generation { epoch: 1, revision: 7 }, difference, manifest, Vec::new());
        let updates: Vec<_> = frames
            .iter()
            .map(|frame| {
                assert!(frame.encoded_len() <= MAX_CONTROL_FRAME, "{}", frame.encoded_len());
                match &frame.frame {
                    Some(wire::coordinator_frame::Frame::Update(update)) => update,
                    other => panic!("not an update: {other:?}"),
                }
            })
            .collect();
        assert!(updates.len() > 5);
        assert_eq!(updates.iter().map(|update| update.objects.len()).sum::<usize>(), 60);
        assert_eq!(updates.iter().map(|update| update.peers.len()).sum::<usize>(), 250);
        let (last, before) = updates.split_last().expect("parts");
        assert!(last.manifest.is_some() && !last.more);
        assert!(before.iter().all(|part| part.more && part.manifest.is_none()));
        assert!(updates.iter().all(|part| (part.from_epoch, part.from_revision) == (1, 7)));
    }
}
