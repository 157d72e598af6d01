//! The meters behind one endpoint, by unit id, as a Modbus service.
//!
//! Only the four reads are served, function codes 01 to 04; all others are refused as a device would that
//! does not know them.

use std::{
    collections::BTreeMap,
    future::{Ready, ready},
    sync::Arc,
};

use corrente_crds::{poller::Transport, profile::Function};
use corrente_record::Timestamp;
use tokio_modbus::{ExceptionCode, Request, Response, SlaveRequest, server::Service};

use crate::{
    device::{Device, Refusal},
    simulation::Clock,
};

/// What happens to a request for a unit that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UnknownUnit {
    /// What the transport's devices do: over TCP a gateway says that the unit did not answer (exception
    /// 0x0B); over RTU nobody says anything.
    #[default]
    AsTransport,
    /// Silence over either, as some gateways have it.
    Silent,
}

/// The meters behind one endpoint.
#[derive(Clone)]
pub struct Line {
    inner: Arc<Inner>,
}

struct Inner {
    units: BTreeMap<u8, Device>,
    silent: bool,
    clock: Clock,
}

impl Line {
    /// A line of these meters.
    #[must_use]
    pub fn new(
        units: BTreeMap<u8, Device>,
        transport: Transport,
        unknown: UnknownUnit,
        clock: Clock,
    ) -> Self {
        let silent = transport == Transport::RtuOverTcp || unknown == UnknownUnit::Silent;
        Self {
            inner: Arc::new(Inner { units, silent, clock }),
        }
    }

    /// How many meters there are.
    #[must_use]
    pub fn meters(&self) -> usize {
        self.inner.units.len()
    }

    /// The answer to a request; `None` is silence.
    fn answer(
        &self,
        unit: u8,
        request: &Request<'_>,
        time: Timestamp,
    ) -> Result<Option<Response>, ExceptionCode> {
        let Some(device) = self.inner.units.get(&unit) else {
            return if self.inner.silent {
                Ok(None)
            } else {
                Err(ExceptionCode::GatewayTargetDevice)
            };
        };
        let read = |function, address, count| {
            device
                .read(function, address, count, time)
                .map_err(|refusal| match refusal {
                    Refusal::IllegalDataAddress => ExceptionCode::IllegalDataAddress,
                    Refusal::IllegalDataValue => ExceptionCode::IllegalDataValue,
                })
        };
        let bits = |words: Vec<u16>| words.into_iter().map(|word| word != 0).collect();
        let response = match *request {
            Request::ReadCoils(address, count) => {
                Response::ReadCoils(bits(read(Function::Coil, address, count)?))
            }
            Request::ReadDiscreteInputs(address, count) => {
                Response::ReadDiscreteInputs(bits(read(Function::Discrete, address, count)?))
            }
            Request::ReadHoldingRegisters(address, count) => {
                Response::ReadHoldingRegisters(read(Function::Holding, address, count)?)
            }
            Request::ReadInputRegisters(address, count) => {
                Response::ReadInputRegisters(read(Function::Input, address, count)?)
            }
            _ => return Err(ExceptionCode::IllegalFunction),
        };
        Ok(Some(response))
    }
}

impl Service for Line {
    type Request = SlaveRequest<'static>;
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = Ready<Result<Self::Response, Self::Exception>>;

    fn call(&self, request: Self::Request) -> Self::Future {
        ready(self.answer(request.slave, &request.request, (self.inner.clock)()))
    }
}
