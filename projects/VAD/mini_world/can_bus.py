"""CAN bus messages of a drive, in the units of nuScenes' expansion."""

import math

import numpy as np

from projects.VAD.mini_world.motion import Motion
from projects.VAD.mini_world.rig import yaw_quaternion
from projects.VAD.mini_world.routes import Route

GRAVITY = 9.81
WHEEL_BASE = 2.588
WHEEL_RADIUS = 0.305
# Turn of the steering wheel per turn of the front wheels.
STEERING_RATIO = 14.0
TURN_SIGNAL_METRES = 25.0


def can_messages(
    motion: Motion, route: Route, start_us: int
) -> dict[str, list | dict]:
    """Returns the messages of one scene by the name of their file.

    The steering angle is that of the wheel, positive to the right, as
    nuScenes documents it.

    Args:
        motion: The drive.
        route: The planned way.
        start_us: Time stamp of second 0.
    """
    count = len(motion.times)
    utime = [start_us + round(t * 1e6) for t in motion.times.tolist()]
    wheel = -np.arctan(WHEEL_BASE * motion.curvature) * STEERING_RATIO
    sideways = motion.speed * motion.yaw_rate
    moments = list(zip(range(count), utime, wheel, sideways, strict=True))
    steps = np.linalg.norm(np.diff(motion.poses[:, :2], axis=0), axis=1)
    driven = np.concatenate(([0.0], np.cumsum(steps)))
    messages: dict[str, list | dict] = {
        'pose': [
            _pose(motion, i, t, aside) for i, t, _, aside in moments[::2]
        ],
        'ms_imu': [_imu(motion, i, t, aside) for i, t, _, aside in moments],
        'steeranglefeedback': [
            {'utime': t, 'value': _short(turn)} for _, t, turn, _ in moments
        ],
        'zoe_veh_info': [
            _vehicle_info(motion, *m, metres)
            for m, metres in zip(moments, driven, strict=True)
        ],
        'zoesensors': [_pedals(motion, *m[:3]) for m in moments],
        'vehicle_monitor': [
            _monitor(motion, route, *m[:3]) for m in moments[::50]
        ],
        'route': np.round(route.xy[::4], 3).tolist(),
    }
    messages['meta'] = {
        name: _statistics(rows)
        for name, rows in messages.items()
        if name != 'route'
    }
    return messages


def _short(number: float) -> float:
    return round(float(number), 5)


def _pose(motion: Motion, i: int, utime: int, sideways: float) -> dict:
    x, y, yaw = motion.poses[i]
    return {
        'accel': [_short(motion.acceleration[i]), _short(sideways), GRAVITY],
        'orientation': [round(q, 8) for q in yaw_quaternion(yaw)],
        'pos': [round(float(x), 4), round(float(y), 4), 0.0],
        'rotation_rate': [0.0, 0.0, _short(motion.yaw_rate[i])],
        'utime': utime,
        'vel': [_short(motion.speed[i]), 0.0, 0.0],
    }


def _imu(motion: Motion, i: int, utime: int, sideways: float) -> dict:
    return {
        'linear_accel': [
            _short(motion.acceleration[i]),
            _short(sideways),
            GRAVITY,
        ],
        'q': [round(q, 6) for q in yaw_quaternion(motion.poses[i, 2])],
        'rotation_rate': [0.0, 0.0, _short(motion.yaw_rate[i])],
        'utime': utime,
    }


def _vehicle_info(
    motion: Motion,
    i: int,
    utime: int,
    wheel: float,
    sideways: float,
    driven: float,
) -> dict:
    speed = float(motion.speed[i])
    rpm = _short(speed / (2 * math.pi * WHEEL_RADIUS) * 60)
    degrees = _short(math.degrees(wheel))
    force = float(motion.acceleration[i])
    return {
        'FL_wheel_speed': rpm,
        'FR_wheel_speed': rpm,
        'RL_wheel_speed': rpm,
        'RR_wheel_speed': rpm,
        'left_solar': 0.0,
        'longitudinal_accel': _short(force),
        'meanEffTorque': _short(400 + 60 * force),
        'odom': _short(driven),
        'odom_speed': _short(speed * 3.6),
        'pedal_cc': _short(max(0.0, 100 * force)),
        'regen': _short(max(0.0, -20 * force)),
        'requestedTorqueAfterProc': _short(400 + 60 * force),
        'right_solar': 0.0,
        'steer_corrected': degrees,
        'steer_offset_can': 0.0,
        'steer_raw': degrees,
        'transversal_accel': _short(sideways),
        'utime': utime,
    }


def _pedals(motion: Motion, i: int, utime: int, wheel: float) -> dict:
    brake = min(1.0, max(0.0, -float(motion.acceleration[i])) / 5)
    throttle = min(1.0, max(0.0, float(motion.acceleration[i])) / 3)
    return {
        'brake_sensor': _short(0.17 + 0.46 * brake),
        'steering_sensor': _short(wheel / 10),
        'throttle_sensor': _short(0.1 + 0.5 * throttle),
        'utime': utime,
    }


def _monitor(
    motion: Motion, route: Route, i: int, utime: int, wheel: float
) -> dict:
    force = float(motion.acceleration[i])
    speed = float(motion.speed[i])
    rpm = _short(speed / (2 * math.pi * WHEEL_RADIUS) * 60)
    left, right = _signals(route, motion.poses[i])
    return {
        'available_distance': 100.0,
        'battery_level': 80.0,
        'brake': _short(min(126.0, max(0.0, -25 * force))),
        'brake_switch': 2 if force < -0.3 else 1,
        'gear_position': 7,
        'left_signal': left,
        'rear_left_rpm': rpm,
        'rear_right_rpm': rpm,
        'right_signal': right,
        'steering': _short(math.degrees(wheel)),
        'steering_speed': 0.0,
        'throttle': _short(min(1000.0, max(0.0, 250 * force))),
        'utime': utime,
        'vehicle_speed': _short(speed * 3.6),
        'yaw_rate': _short(math.degrees(motion.yaw_rate[i])),
    }


def _signals(route: Route, pose: np.ndarray) -> tuple[int, int]:
    """Whether the left and the right turn signal are on."""
    here = int(np.linalg.norm(route.xy - pose[:2], axis=1).argmin())
    for passage in route.passages:
        if not 0 < passage.leave - route.along[here] < 50:
            continue
        if passage.enter - route.along[here] > TURN_SIGNAL_METRES:
            break
        ends = np.interp(
            [passage.enter, passage.leave], route.along, route.heading
        )
        return int(ends[1] - ends[0] > 0.5), int(ends[1] - ends[0] < -0.5)
    return 0, 0


def _statistics(rows: list[dict]) -> dict:
    """What nuScenes' meta file holds about one kind of message."""
    times = np.array([row['utime'] for row in rows]) / 1e6
    gaps = np.diff(times)
    out: dict = {
        'message_count': len(rows),
        'message_freq': _short(1 / gaps.mean()),
        'timespan': _short(times[-1] - times[0]),
        'var_stats': {},
    }
    for key in rows[0]:
        values = np.array([row[key] for row in rows], dtype=float)
        out['var_stats'][key] = {
            'max': np.max(values, axis=0).tolist(),
            'mean': np.mean(values, axis=0).tolist(),
            'min': np.min(values, axis=0).tolist(),
            'std': np.std(values, axis=0).tolist(),
        }
    return out
