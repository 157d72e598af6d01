//! The handover gate: never two masters on a gateway.
//!
//! Kubernetes makes no such promise. A ReplicaSet replaces a pod as soon as it is told to end, while it
//! still polls; a Deployment of another shard knows nothing of this one. So every poller pod is born with
//! a scheduling gate, and is released here, when nobody else can be holding one of its endpoints:
//! 1. [`holder`]: what a pod object says about the endpoints it holds.
//! 2. [`decide`]: which gated pods may go, and for whom the others wait. Pure.
//! 3. [`snapshot`]: the pods of all namespaces, read from the API server itself and not from a cache,
//!    with the server's own time.
//! 4. [`release`]: the removal of the gate, on exactly the object that was judged.
//! 5. [`gate`]: the loop around them, woken by changes of poller pods.
//! 6. [`waits`]: for whom a pod waits, as sentences for people.
//!
//! **Why two operators at the same time are safe.** A pod that is not gated blocks everyone it shares an
//! endpoint with. Of gated pods only the oldest may go: age is the creation time, then the uid, which both
//! operators read alike. What one of them could miss is a pod that counts as older and was made after its
//! list. Creation times have whole seconds, so such a pod could only have been made in the same second:
//! no pod is released in the second of its creation, by the server's clock. Whatever is made later is
//! younger, whoever looks. And as no pod ever takes a gate back on, what was released stays visible as a
//! holder until its object is gone.

pub mod decide;
pub mod gate;
pub mod holder;
pub mod release;
pub mod snapshot;
pub mod waits;
