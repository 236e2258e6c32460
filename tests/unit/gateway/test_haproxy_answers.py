"""HAProxy 2.8.25's answers, recorded, and what is read from them."""

import pytest

from controlplane.adapters.activator.config import ActivatorConfig, ActivatorState
from controlplane.adapters.haproxy.answers import (
    Counted,
    Processes,
    parse_counted,
    parse_drained,
    parse_info,
    parse_processes,
    parse_slots,
    parse_stat,
    refusals,
)
from controlplane.adapters.haproxy.traffic import routes_of, servers_of
from controlplane.gateway.changes import SlotAdmin
from controlplane.kernel.ids import DeploymentName

CHAT = DeploymentName("chat")

INFO = """\
Name: HAProxy
Version: 2.8.25-5cf5d0683
Pid: 27668
Uptime: 0d 0h00m06s
description: quarterdeck 338ae5ebb0fa5a16
Start_time_sec: 1795270823
"""

STATE = (
    "1\n"
    "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state "
    "srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl "
    "srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n"
    "7 slow 1 activator - 2 0 1 1 0 1 0 2 0 0 0 0 - 0 - 0 0 - - 0\n"
    "8 d_chat 1 hold - 2 0 1 1 0 1 0 2 0 0 0 0 - 0 - 0 0 - - 0\n"
    "8 d_chat 2 s1 127.0.0.1 2 0 100 100 0 15 3 3 6 0 0 0 - 39115 - 0 0 - - 0\n"
    "8 d_chat 3 s2 127.0.0.1 0 5 1 1 0 1 0 0 14 0 0 0 - 1 - 0 0 - - 0\n"
)

STAT = (
    "# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,statu"
    "s,weight,act,bck,chkfail,chkdown,lastchg,downtime,qlimit,pid,iid,sid,throttle,lbtot,tracked,type,rat"
    "e,rate_lim,rate_max,check_status,check_code,check_duration,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_"
    "5xx,hrsp_other,hanafail,req_rate,req_rate_max,req_tot,cli_abrt,srv_abrt,comp_in,comp_out,comp_byp,co"
    "mp_rsp,lastsess,last_chk,last_agt,qtime,ctime,rtime,ttime,agent_status,agent_code,agent_duration,che"
    "ck_desc,agent_desc,check_rise,check_fall,check_health,agent_rise,agent_fall,agent_health,addr,cookie"
    ",mode,algo,conn_rate,conn_rate_max,conn_tot,intercepted,dcon,dses,wrew,connect,reuse,cache_lookups,c"
    "ache_hits,srv_icur,src_ilim,qtime_max,ctime_max,rtime_max,ttime_max,eint,idle_conn_cur,safe_conn_cur"
    ",used_conn_cur,need_conn_est,uweight,agg_server_status,agg_server_check_status,agg_check_status,srid"
    ",sess_other,h1sess,h2sess,h3sess,req_other,h1req,h2req,h3req,proto,-,ssl_sess,ssl_reused_sess,ssl_fa"
    "iled_handshake,h2_headers_rcvd,h2_data_rcvd,h2_settings_rcvd,h2_rst_stream_rcvd,h2_goaway_rcvd,h2_de"
    "tected_conn_protocol_errors,h2_detected_strm_protocol_errors,h2_rst_stream_resp,h2_goaway_resp,h2_op"
    "en_connections,h2_backend_open_streams,h2_total_connections,h2_backend_total_streams,h1_open_connect"
    "ions,h1_open_streams,h1_total_connections,h1_total_streams,h1_bytes_in,h1_bytes_out,h1_spliced_bytes"
    "_in,h1_spliced_bytes_out,\n"
    "d_chat,hold,0,0,0,0,,0,0,0,,0,,0,0,0,0,no check,1,0,1,,,0,,,1,8,1,,0,,2,0,,0,,,,0,0,0,0,0,0,,,,0,0,0"
    ",,,,,-1,,,0,0,0,0,,,,,,,,,,,,unix,,http,,,,,,,,0,0,0,,,0,,0,0,0,0,0,0,0,0,0,1,,,,0,,,,,,,,,,-,0,0,0,"
    ",,,,,,,,,,,,,,,,,,,,,\n"
    "d_chat,s1,0,0,0,1,320,1,206,596,,0,,0,0,0,0,UP,100,1,0,0,0,0,0,,1,8,2,,1,,2,1,,1,L7OK,200,1,0,1,0,0,"
    "0,0,0,,,1,0,0,,,,,0,,,0,0,1,1,,,,Layer7 check passed,,1,3,3,,,,127.0.0.1:39115,,http,,,,,,,,0,1,0,,,"
    "0,,0,0,1,1,0,0,0,0,1,100,,,,0,,,,,,,,,,-,0,0,0,,,,,,,,,,,,,,,,,,,,,,\n"
    "d_chat,BACKEND,0,0,0,1,1,1,206,596,0,0,,0,0,0,0,UP (2/9),100,1,1,,0,0,0,,1,8,0,,1,,1,1,,1,,,,0,1,0,0"
    ",0,0,,,,1,0,0,0,0,0,0,0,,,0,0,1,1,,,,,,,,,,,,,,http,leastconn,,,,,,,0,1,0,0,0,,,0,0,1,1,0,,,,,100,0,"
    "0,0,,,,,,,,,,,-,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,2,2,770,397,0,0,\n"
)

STAT_DOWN = (
    "# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,statu"
    "s,weight,act,bck,chkfail,chkdown,lastchg,downtime,qlimit,pid,iid,sid,throttle,lbtot,tracked,type,rat"
    "e,rate_lim,rate_max,check_status,check_code,check_duration,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_"
    "5xx,hrsp_other,hanafail,req_rate,req_rate_max,req_tot,cli_abrt,srv_abrt,comp_in,comp_out,comp_byp,co"
    "mp_rsp,lastsess,last_chk,last_agt,qtime,ctime,rtime,ttime,agent_status,agent_code,agent_duration,che"
    "ck_desc,agent_desc,check_rise,check_fall,check_health,agent_rise,agent_fall,agent_health,addr,cookie"
    ",mode,algo,conn_rate,conn_rate_max,conn_tot,intercepted,dcon,dses,wrew,connect,reuse,cache_lookups,c"
    "ache_hits,srv_icur,src_ilim,qtime_max,ctime_max,rtime_max,ttime_max,eint,idle_conn_cur,safe_conn_cur"
    ",used_conn_cur,need_conn_est,uweight,agg_server_status,agg_server_check_status,agg_check_status,srid"
    ",sess_other,h1sess,h2sess,h3sess,req_other,h1req,h2req,h3req,proto,-,ssl_sess,ssl_reused_sess,ssl_fa"
    "iled_handshake,h2_headers_rcvd,h2_data_rcvd,h2_settings_rcvd,h2_rst_stream_rcvd,h2_goaway_rcvd,h2_de"
    "tected_conn_protocol_errors,h2_detected_strm_protocol_errors,h2_rst_stream_resp,h2_goaway_resp,h2_op"
    "en_connections,h2_backend_open_streams,h2_total_connections,h2_backend_total_streams,h1_open_connect"
    "ions,h1_open_streams,h1_total_connections,h1_total_streams,h1_bytes_in,h1_bytes_out,h1_spliced_bytes"
    "_in,h1_spliced_bytes_out,\n"
    "d_chat,s2,3,3,5,5,320,1,206,596,,0,,0,0,0,0,DOWN,100,1,0,0,0,0,0,,1,8,2,,1,,2,1,,1,L7OK,200,1,0,1,0,"
    '0,0,0,0,,,1,0,0,,,,,0,,,0,0,1,1,,,,"Layer4 problem, refused",,1,3,3,,,,10.0.0.8:8000,,http,,,,,,,,0,'
    "1,0,,,0,,0,0,1,1,0,0,0,0,1,100,,,,0,,,,,,,,,,-,0,0,0,,,,,,,,,,,,,,,,,,,,,,\n"
)

PROCESSES = """\
#<PID>          <type>          <reloads>       <uptime>        <version>
9646            master          1 [failed: 0]   0d00h02m01s     2.8.25-5cf5d0683
# workers
10646           worker          0               0d00h00m00s     2.8.25-5cf5d0683
# old workers
9649            worker          1               0d00h02m01s     2.8.25-5cf5d0683
9650            worker          2               0d00h02m01s     2.8.25-5cf5d0683
# programs
"""

TABLE = """\
# table: arrivals, type: string, size:10000, used:2
0x382e6518: key=chat use=0 exp=0 shard=0 gpc0=12 gpc1=3
0x382e6600: key=embed-2 use=1 exp=0 shard=0 gpc0=1 gpc1=0
"""


def test_info() -> None:
    info = parse_info(INFO)
    assert info is not None
    assert (info.structure, info.epoch) == ("338ae5ebb0fa5a16", "27668.1795270823")


@pytest.mark.parametrize("text", ["", "Unknown command", INFO.replace("quarterdeck ", "other ")])
def test_not_our_haproxy(text: str) -> None:
    assert parse_info(text) is None


def test_processes() -> None:
    assert parse_processes(PROCESSES) == Processes(master=9646, worker=10646, old_workers=(9649, 9650))
    before_the_worker = PROCESSES.split("10646", maxsplit=1)[0]
    assert parse_processes(before_the_worker) == Processes(master=9646, worker=None, old_workers=())


def test_slots_in_one_text_with_other_answers() -> None:
    info = parse_info(INFO)
    assert info is not None
    (used, unused) = parse_slots(info, f"{INFO}\n{STATE}\n{STAT}").slots[CHAT]
    assert (used.endpoint, used.admin, used.up) == ("127.0.0.1:39115", SlotAdmin.READY, True)
    assert (used.weight, used.maxconn, used.in_flight) == (100, 320, 0)
    assert (unused.endpoint, unused.admin, unused.up) == ("127.0.0.1:1", SlotAdmin.MAINT, False)


@pytest.mark.parametrize(
    ("bits", "admin"),
    [(0, SlotAdmin.READY), (4, SlotAdmin.READY), (5, SlotAdmin.MAINT), (8, SlotAdmin.DRAIN), (12, SlotAdmin.DRAIN),
     (1, SlotAdmin.MAINT), (9, SlotAdmin.MAINT), (32, SlotAdmin.MAINT)],
)  # fmt: skip
def test_administrative_states(bits: int, admin: SlotAdmin) -> None:
    info = parse_info(INFO)
    assert info is not None
    state = STATE.replace("s1 127.0.0.1 2 0 ", f"s1 127.0.0.1 2 {bits} ")
    assert parse_slots(info, state).slots[CHAT][0].admin is admin
    assert parse_drained(state) == ({("d_chat", "s1")} if admin is SlotAdmin.DRAIN else set())


def test_rows_with_commas_in_quotes() -> None:
    (row,) = parse_stat(STAT_DOWN)
    assert (row.server, row.status, row.endpoint) == ("s2", "DOWN", "10.0.0.8:8000")
    assert (row.queued, row.in_flight, row.limit) == (3, 5, 320)


def test_counted() -> None:
    assert parse_counted(f"{STAT}\n{TABLE}") == {
        CHAT: Counted(arrivals=12, responses_5xx=3),
        DeploymentName("embed-2"): Counted(arrivals=1, responses_5xx=0),
    }


def test_refusals_are_what_is_no_success() -> None:
    assert refusals("\n\n") == []
    said = "no need to change the addr, port changed from '1' to '28101' by 'stats socket command'\n\n"
    assert refusals(said) == []
    assert refusals(f"{said}No such server.\n") == ["No such server."]


def test_servers_and_routes() -> None:
    state = ActivatorState(
        pid=1, started_at_s=2.0, config=CONFIG, held={"chat": 4}, body_bytes=0, slow_total=0, held_total=4,
        refused_total=0, late_5xx={"chat": 2},
    )  # fmt: skip
    rows = [*parse_stat(STAT), *parse_stat(STAT_DOWN)]
    old = [row for row in parse_stat(STAT_DOWN) if row.in_flight]
    servers = servers_of(rows, old, {("d_chat", "s2")})
    assert {endpoint: (server.state, server.in_flight) for endpoint, server in servers.items()} == {
        "127.0.0.1:39115": ("UP", 0),
        "10.0.0.8:8000": ("DRAIN", 10),
    }
    route = routes_of(rows, old, parse_counted(TABLE), state)[CHAT]
    assert (route.arrivals_total, route.responses_5xx_total) == (12, 5)
    assert (route.in_flight, route.queued, route.held, route.servers_up) == (10, 3, 4, 1)


CONFIG = ActivatorConfig(
    listen_socket="a", control_socket="b", admin_socket="c", internal_socket="d", hold_requests_max=1,
    hold_bytes_max=1, hold_timeout_s=1.0, body_bytes_max=1, request_timeout_s=1.0,
)  # fmt: skip
